// How an episode begins, and what the page shows of it.
(() => {
  'use strict';
  const { native, advance, tree, read, forget, clean } = gymrl;

  function hash(text) {  // FNV-1a with Murmur's finish, 32 bits
    let h = 0x811c9dc5;
    for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return (h ^ (h >>> 16)) >>> 0;
  }

  function utterance() {
    const said = core.getUtterance();
    return clean(typeof said === 'string' ? said : said.utterance);
  }

  async function settled() {  // what loads in its own time: the child page of the flight tasks, images
    for (let waited = 0; WOB_TASK_READY === false && waited < 15000; waited += 20) await new Promise((go) => native.setTimeout(go, 20));
    const images = [...document.images].filter((image) => !image.complete);
    const loaded = (image) => new Promise((go) => { image.addEventListener('load', go); image.addEventListener('error', go); });
    await Promise.race([Promise.all(images.map(loaded)), new Promise((go) => native.setTimeout(go, 15000))]);
  }

  const pictures = [];  // those that styles name, kept so that they are there at once wherever they are used

  async function preloaded(backgrounds) {  // as text only those count that have a size: backgrounds have none
    const found = new Set();
    for (const sheet of document.styleSheets) {
      for (const rule of sheet.cssRules) {
        const text = backgrounds ? rule.cssText : rule.cssText.replace(/background[^;}]*/g, '');
        for (const [, url] of text.matchAll(/url\("([^"]+\.(?:png|gif|jpe?g|svg))"\)/g)) found.add(new URL(url, sheet.href || location.href).href);
      }
    }
    for (const url of found) {
      const picture = new Image();
      picture.src = url;
      pictures.push(picture);
    }
    await Promise.all(pictures.map((picture) => picture.decode().catch(() => null)));
  }

  async function look() {
    await settled();
    return read();
  }

  // Draw from the seed until a page belongs to the split, which owns those whose hash is from low to high - 1. The hash is
  // of all that is shown and of nothing else: tasks of other names that show the same page have it in the same split.
  async function begin({ seed, low, high, draws, at, images }) {
    core.EPISODE_MAX_TIME = 1e9;
    await preloaded(images);
    let drawn = 0, owned = false, problem = 0;
    for (; drawn < draws && !owned; drawn++) {
      forget(false);
      Math.seedrandom(seed + '/' + drawn);
      core.startEpisodeReal();
      advance(500);
      await settled();
      problem = hash('miniwob\n' + utterance() + '\n' + tree());
      owned = low <= problem % 100 && problem % 100 < high;
    }
    forget(at);
    const { width, height } = document.getElementById('wrap').getBoundingClientRect();
    return { ...read(), utterance: utterance(), owned, drawn, problem, width, height };
  }

  Object.assign(gymrl, { begin, look, utterance });
})();
