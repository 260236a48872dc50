// Runs in every page before the page's own scripts: a clock that only moves when it is told to, the page as text with
// numbered elements, and what the actions need to know of it. Python speaks to it as `gymrl`.
(() => {
  'use strict';
  const START = Date.UTC(2026, 0, 1);
  const native = { Date, setTimeout: window.setTimeout.bind(window), open: window.open.bind(window) };

  // ---- the clock ---------------------------------------------------------------------------------------------------
  let now = 0, timerIds = 0;
  const timers = new Map();

  function addTimer(fn, delay, args, every) {
    const id = ++timerIds;
    timers.set(id, { id, fn, args, every, at: now + Math.max(Number(delay) || 0, 1) });
    return id;
  }

  window.setTimeout = (fn, delay, ...args) => addTimer(fn, delay, args, null);
  window.setInterval = (fn, delay, ...args) => addTimer(fn, delay, args, Math.max(Number(delay) || 0, 4));
  window.requestAnimationFrame = (fn) => addTimer((...a) => fn(now, ...a), 16, [], null);
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = (id) => { timers.delete(id); };
  window.performance.now = () => now;
  window.Date = new Proxy(native.Date, {
    construct: (target, args, made) => Reflect.construct(target, args.length ? args : [START + now], made),
    apply: () => new native.Date(START + now).toString(),
    get: (target, key) => (key === 'now' ? () => START + now : Reflect.get(target, key)),
  });

  function advance(ms) {
    const until = now + ms;
    for (let budget = 5000; budget > 0; budget--) {
      let next = null;
      for (const timer of timers.values()) {
        if (timer.at <= until && (!next || timer.at < next.at || (timer.at === next.at && timer.id < next.id))) next = timer;
      }
      if (!next) break;
      now = Math.max(now, next.at);
      if (next.every === null) timers.delete(next.id); else next.at = now + next.every;
      try {
        if (typeof next.fn === 'function') next.fn.apply(window, next.args);
      } catch (error) {
        console.log('in a timer: ' + error);
      }
    }
    now = until;
    for (const inner of innerWindows()) inner.gymrl.advance(ms);
  }

  // ---- what would make two runs differ, or leave the page ------------------------------------------------------------
  let state = 0x9e3779b9;  // until the page's own seeded generator takes over
  Math.random = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  window.alert = window.confirm = window.prompt = window.open = window.print = () => null;
  window.addEventListener('submit', (event) => event.preventDefault());
  window.addEventListener('click', (event) => {
    const link = event.target.closest && event.target.closest('a[href]');
    if (link && link.href.split('#')[0] !== location.href.split('#')[0]) event.preventDefault();
  });
  window.addEventListener('contextmenu', (event) => event.preventDefault());
  document.addEventListener('DOMContentLoaded', () => {
    const style = document.createElement('style');
    style.textContent = '*, *::before, *::after { transition: none !important; animation: none !important;' +
      ' caret-color: transparent !important; scroll-behavior: auto !important; }';
    document.head.append(style);
  });
  let clipboard = '';  // the system's is shared by all pages
  const keep = (event) => {
    clipboard = selectedText();
    event.preventDefault();
  };
  window.addEventListener('copy', keep, true);
  window.addEventListener('cut', keep, true);

  function selectedText() {
    const at = document.activeElement;
    if (at && typeof at.selectionStart === 'number') return at.value.slice(at.selectionStart, at.selectionEnd);
    return String(window.getSelection());
  }

  function shortcut(key) {
    const text = selectedText();
    if (key === 'c' || (key === 'x' && text)) clipboard = text;
    if (key === 'x' && text) document.execCommand('delete');
    if (key === 'v') document.execCommand('insertText', false, clipboard);
  }

  // ---- which elements listen -----------------------------------------------------------------------------------------
  const POINTER = /^(click|dblclick|mousedown|mouseup|pointerdown|pointerup|mouseover|mouseenter|mousemove)$/;
  const listeners = new WeakMap();
  const addEventListener = EventTarget.prototype.addEventListener;
  const removeEventListener = EventTarget.prototype.removeEventListener;
  EventTarget.prototype.addEventListener = function (type, fn, options) {
    if (fn && this instanceof Element && POINTER.test(type)) {
      if (!listeners.has(this)) listeners.set(this, new Set());
      listeners.get(this).add(type);
    }
    return addEventListener.call(this, type, fn, options);
  };
  EventTarget.prototype.removeEventListener = function (type, fn, options) {
    if (listeners.has(this)) listeners.get(this).delete(type);
    return removeEventListener.call(this, type, fn, options);
  };
  const listens = (el) => Boolean((listeners.has(el) && listeners.get(el).size) || el.onclick || el.onmousedown);

  // ---- the page as text ----------------------------------------------------------------------------------------------
  const HIDDEN_IDS = new Set(['query', 'query-wrap', 'reward-display', 'sync-task-cover', 'click-canvas', 'attention-canvas']);
  const SKIPPED = new Set(['SCRIPT', 'STYLE', 'LINK', 'META', 'TITLE', 'HEAD', 'NOSCRIPT', 'TEMPLATE', 'DEFS', 'BR', 'HR', 'OPTION']);
  const SHAPES = new Set(['circle', 'ellipse', 'rect', 'polygon', 'polyline', 'line', 'path', 'text', 'image']);
  const FIELD = { text: 'textbox', search: 'textbox', email: 'textbox', tel: 'textbox', url: 'textbox', input: 'textbox',
    password: 'password', submit: 'button', button: 'button', reset: 'button', image: 'button', range: 'slider',
    checkbox: 'checkbox', radio: 'radio', number: 'number', date: 'date', time: 'time', color: 'color', file: 'file' };
  const ROLES = { A: 'link', BUTTON: 'button', TEXTAREA: 'textbox', IMG: 'image', CANVAS: 'canvas', LI: 'item', TR: 'row', TD: 'cell',
    TH: 'cell', H1: 'heading', H2: 'heading', H3: 'heading', H4: 'heading', LABEL: 'label' };
  const NAMED_ROLES = new Set(['tab', 'dialog', 'menuitem', 'menu', 'slider', 'tooltip', 'alert', 'button', 'link', 'checkbox']);
  const DRAGGED = /ui-draggable|ui-sortable-handle|ui-slider-handle|ui-resizable-handle/;
  let refs = new WeakMap(), elements = new Map(), positions = false;

  const clean = (text) => text.replace(/[\s\u00a0]+/g, ' ').trim();
  const quote = (text, most = 300) => JSON.stringify(text.length > most ? text.slice(0, most) + '…' : text);
  const innerWindows = () => [...document.querySelectorAll('iframe')].map((f) => f.contentWindow).filter((w) => {
    try { return Boolean(w && w.gymrl); } catch { return false; }
  });

  function ref(el) {
    if (!refs.has(el)) {
      const number = elements.size + 1;
      refs.set(el, number);
      elements.set(number, el);
    }
    return refs.get(el);
  }

  function offset(el) {  // of the element's frame in the window
    let x = 0, y = 0;
    for (let w = el.ownerDocument.defaultView; w !== window && w && w.frameElement; w = w.parent) {
      const box = w.frameElement.getBoundingClientRect();
      x += box.left; y += box.top;
    }
    return [x, y];
  }

  function box(el) {
    const rect = el.getBoundingClientRect(), [dx, dy] = offset(el);
    return { x: rect.left + dx, y: rect.top + dy, width: rect.width, height: rect.height };
  }

  function centre(el) {
    const b = box(el);
    return [Math.round(b.x + b.width / 2), Math.round(b.y + b.height / 2)];
  }

  function nameOf(el) {
    const label = el.closest('label') || (el.labels && el.labels[0]);
    return clean(el.getAttribute('aria-label') || (label ? ownText(label) : '') || el.getAttribute('placeholder') || el.title || el.alt || '');
  }

  function ownText(label) {  // a label's text without that of a list inside it
    return [...label.childNodes].map((node) => (node.nodeType === 3 ? node.data : node.tagName === 'SELECT' ? '' : node.textContent)).join('');
  }

  const colour = (text) => text.replace(/^rgb\((\d+), (\d+), (\d+)\)$/, (_, r, g, b) =>
    '#' + [r, g, b].map((c) => Number(c).toString(16).padStart(2, '0')).join(''));

  function paint(style) {
    const found = [];
    if (!/^(rgba\(0, 0, 0, 0\)|transparent)$/.test(style.backgroundColor)) found.push('color=' + colour(style.backgroundColor));
    return found;
  }

  const classes = (el) => String(el.getAttribute('class') || '').split(/\s+/).filter(Boolean).map((c) => '.' + c).join('');

  function marks(el) {
    const found = [], aria = (name) => el.getAttribute('aria-' + name);
    if (el.checked === true || aria('checked') === 'true') found.push('checked');
    if (el.tagName !== 'OPTION' && (aria('selected') === 'true' || /(^|\s)(selected|active)(\s|$)/.test(el.getAttribute('class') || ''))) found.push('selected');
    if (aria('expanded') === 'true') found.push('expanded');
    if (aria('expanded') === 'false') found.push('collapsed');
    if (el.disabled || aria('disabled') === 'true') found.push('disabled');
    if (el.readOnly) found.push('readonly');
    if (el === el.ownerDocument.activeElement && el !== el.ownerDocument.body) found.push('focused');
    if (el.scrollHeight > el.clientHeight + 4 && el.clientHeight > 0 && /auto|scroll/.test(getComputedStyle(el).overflowY)) {
      found.push(`scroll=${Math.round(el.scrollTop)}/${el.scrollHeight - el.clientHeight}`);
    }
    return found;
  }

  function line(el, role, text, extra = [], spot = false) {
    const parts = [`[${ref(el)}]`, role];
    if (text) parts.push(quote(text));
    parts.push(...extra, ...marks(el));
    if (spot || positions || DRAGGED.test(el.getAttribute('class') || '')) parts.push('at ' + centre(el).join(','));
    return parts.join(' ');
  }

  function shapeLine(el) {
    const tag = el.tagName.toLowerCase(), style = getComputedStyle(el), b = box(el), extra = [];
    const fill = el.getAttribute('fill') || style.fill, stroke = el.getAttribute('stroke') || style.stroke;
    if (fill && fill !== 'none') extra.push('fill=' + colour(fill));
    if (stroke && stroke !== 'none') extra.push('stroke=' + colour(stroke));
    const ends = ['x1', 'y1', 'x2', 'y2'].map((k) => el.getAttribute(k));
    if (tag === 'line') extra.push(`from ${ends[0]},${ends[1]} to ${ends[2]},${ends[3]}`);
    if (tag === 'polygon') extra.push(`corners=${(el.getAttribute('points') || '').trim().split(/\s+/).length}`);
    if (tag === 'text') extra.push('size=' + parseFloat(el.getAttribute('font-size') || style.fontSize));
    else extra.push(`size=${Math.round(b.width)}x${Math.round(b.height)}`);
    return line(el, tag, tag === 'text' ? clean(el.textContent) : '', extra, true);
  }

  const plain = (el) => !listens(el) && !ROLES[el.tagName] && !/^(INPUT|SELECT|IFRAME|svg|P|DIV|UL|OL|TABLE)$/.test(el.tagName) &&
    el.childNodes.length > 0 && !el.getAttribute('role') && getComputedStyle(el).display.startsWith('inline') && !DRAGGED.test(el.className);
  const wordsOnly = (el) => [...el.querySelectorAll('*')].every((inner) => plain(inner) || inner.tagName === 'BR');

  const active = (el) => listens(el) || /^(A|BUTTON|INPUT|SELECT|TEXTAREA|IMG|CANVAS|IFRAME|svg|LI|TD|TH)$/.test(el.tagName) ||
    el.getAttribute('role') || el.isContentEditable || DRAGGED.test(el.getAttribute('class') || '');

  function fieldLine(el) {
    const type = (el.getAttribute('type') || 'text').toLowerCase(), role = FIELD[type] || 'textbox', extra = [];
    if (role === 'button') return line(el, role, clean(el.value) || nameOf(el));
    if (!['checkbox', 'radio', 'file'].includes(role) && el.value) extra.push('value=' + quote(el.value));
    return line(el, role, nameOf(el), extra);
  }

  function selectLine(el) {
    const options = [...el.options].map((o) => (o.selected ? '*' : '') + quote(clean(o.text), 80));
    return line(el, el.multiple ? 'listbox' : 'select', nameOf(el), ['options: ' + options.join(' | ')]);
  }

  function walk(el, depth, out) {
    if (HIDDEN_IDS.has(el.id) || SKIPPED.has(el.tagName) || out.length > 400) return;
    if (el.matches('.ui-dialog > .ui-resizable-handle')) return;  // eight edges that no task is about
    const put = (text) => out.push('  '.repeat(depth) + text);
    if (el.tagName === 'IFRAME') {
      let inner = null;
      try { inner = el.contentDocument; } catch { /* another origin's */ }
      if (inner && inner.body) walk(inner.body, depth, out);
      return;
    }
    if (!el.checkVisibility({ checkVisibilityCSS: true })) {
      if (getComputedStyle(el).display !== 'none') for (const child of el.children) walk(child, depth, out);
      return;
    }
    const tag = el.tagName;
    if (tag === 'svg') { for (const shape of el.querySelectorAll('*')) if (SHAPES.has(shape.tagName) && shape.checkVisibility()) put(shapeLine(shape)); return; }
    if (tag === 'INPUT') { if (el.type !== 'hidden') put(fieldLine(el)); return; }
    if (tag === 'SELECT') return put(selectLine(el));
    if (tag === 'TEXTAREA') return put(line(el, 'textbox', nameOf(el), el.value ? ['value=' + JSON.stringify(el.value)] : []));
    const given = el.getAttribute('role'), heard = listens(el);
    let role = NAMED_ROLES.has(given) ? given : ROLES[tag] || '';
    if (heard && !['button', 'link', 'tab', 'menuitem'].includes(role)) role = role && role !== 'label' ? role + ' clickable' : 'clickable';
    if (/(^|\s)a?link(\s|$)/.test(el.getAttribute('class') || '')) role = 'link';
    if (tag === 'IMG' || tag === 'CANVAS') {
      const b = box(el);
      return put(line(el, role, nameOf(el) || (tag === 'IMG' ? (el.getAttribute('src') || '').slice(0, 60).split('/').pop() : ''), [`size=${Math.round(b.width)}x${Math.round(b.height)}`], true));
    }
    if (wordsOnly(el)) {
      const text = clean(el.textContent);
      if (text) return put(line(el, role === 'label' ? 'text' : role || 'text', text));
      const b = box(el), style = getComputedStyle(el);
      if (b.width < 2 || b.height < 2 || el === el.ownerDocument.body || el.id === 'area' || el.id === 'wrap') return;
      const seen = paint(style);
      const bare = /^(cell|item|heading|label|row)?$/.test(role);
      if (heard || !bare || seen.length || style.backgroundImage !== 'none' || el.isContentEditable) {
        const name = nameOf(el);
        put(line(el, el.isContentEditable ? 'textbox' : role || 'box', name, [name ? '' : classes(el), ...seen].filter(Boolean), true));
      }
      return;
    }
    const single = el.children.length === 1 && !clean([...el.childNodes].map((n) => n.data || '').join('')) && wordsOnly(el.children[0]);
    if (single && /^(cell|item)/.test(role) && /^(A|BUTTON)$/.test(el.children[0].tagName)) return walk(el.children[0], depth, out);
    if (/^(link|button|tab|menuitem|heading|item|clickable)/.test(role) && ![...el.querySelectorAll('*')].some(active)) {
      return put(line(el, role, clean(el.textContent) || nameOf(el)));
    }
    const labelled = tag === 'LABEL' && el.control && el.contains(el.control);
    const shown = ['dialog', 'row', 'menu'].includes(role) || heard || role === 'link' || role === 'button' || role === 'tab' || role === 'menuitem'
      || role === 'item' || el.isContentEditable || DRAGGED.test(el.getAttribute('class') || '') || marks(el).some((m) => m.startsWith('scroll'));
    let inner = depth;
    if (shown && el !== el.ownerDocument.body) {
      inner = depth + 1;
      put(line(el, el.isContentEditable ? 'textbox' : role || 'group', nameOf(el), [], Boolean(el.isContentEditable)));
    }
    let words = '';
    const flush = () => {
      if (clean(words) && !labelled) out.push('  '.repeat(inner) + 'text ' + quote(clean(words), 600));
      words = '';
    };
    for (const child of el.childNodes) {
      if (child.nodeType === 3) words += child.data;
      else if (child.nodeType === 1) {
        if (plain(child) && wordsOnly(child) && child.checkVisibility()) words += child.textContent;
        else { flush(); walk(child, inner, out); }
      }
    }
    flush();
  }

  function tree() {
    const out = [];
    walk(document.body, 0, out);
    return out.join('\n');
  }

  function read() {
    const text = WOB_DONE_GLOBAL ? '' : tree();
    const now = [...text.matchAll(/^ *\[(\d+)\] (\S+)/gm)].map((m) => [Number(m[1]), m[2]]);
    return { text, elements: now, done: WOB_DONE_GLOBAL, raw: Number(WOB_RAW_REWARD_GLOBAL), reason: String(WOB_REWARD_REASON || '') };
  }

  // ---- beginning an episode ------------------------------------------------------------------------------------------
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

  async function preloaded() {
    const found = new Set();
    for (const sheet of document.styleSheets) {
      for (const rule of sheet.cssRules) {
        for (const [, url] of rule.cssText.matchAll(/url\("([^"]+\.(?:png|gif|jpe?g|svg))"\)/g)) found.add(new URL(url, sheet.href || location.href).href);
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

  async function begin({ seed, low, high, draws, split, at }) {
    core.EPISODE_MAX_TIME = 1e9;
    positions = false;
    await preloaded();
    let drawn = 0, owned = false;
    for (; drawn < draws && !owned; drawn++) {
      refs = new WeakMap(); elements = new Map();
      Math.seedrandom(seed + '/' + drawn);
      core.startEpisodeReal();
      advance(500);
      await settled();
      const share = hash(split + '\n' + utterance() + '\n' + tree()) % 100;
      owned = low <= share && share < high;
    }
    refs = new WeakMap(); elements = new Map(); positions = at;
    const { width, height } = document.getElementById('wrap').getBoundingClientRect();
    return { ...read(), utterance: utterance(), owned, drawn, problem: hash(utterance() + '\n' + tree()), width, height };
  }

  // ---- what actions need ---------------------------------------------------------------------------------------------
  function reach(number) {  // a point at which the mouse meets the element
    const el = elements.get(number);
    if (!el) return { error: `there is no element [${number}]` };
    if (!el.isConnected || !el.checkVisibility({ checkVisibilityCSS: true })) return { error: `[${number}] is not on the page any more` };
    el.scrollIntoView({ block: 'nearest', inline: 'nearest', behavior: 'instant' });
    const doc = el.ownerDocument, [dx, dy] = offset(el);
    const meets = (x, y) => {
      const hit = doc.elementFromPoint(x, y);
      return hit && (hit === el || el.contains(hit) || (hit.control && hit.control === el));
    };
    for (const [fx, fy] of [[0.5, 0.5], [0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75], [0.1, 0.1], [0.9, 0.9]]) {
      for (const rect of el.getClientRects()) {
        const x = rect.left + rect.width * fx, y = rect.top + rect.height * fy;
        if (meets(x, y)) return { x: x + dx, y: y + dy };
      }
    }
    return { error: `[${number}] is covered by something else` };
  }

  function corners(number) {  // from before an element's first letter to after its last
    const el = elements.get(number), range = document.createRange(), [dx, dy] = offset(el);
    range.selectNodeContents(el);
    const rects = [...range.getClientRects()].filter((rect) => rect.width > 0);
    if (!rects.length) { const b = box(el); return [[b.x + 1, b.y + 1], [b.x + b.width - 1, b.y + b.height - 1]]; }
    const first = rects[0], last = rects[rects.length - 1];
    return [[first.left + dx, first.top + first.height / 2 + dy], [last.right + dx + 1, last.top + last.height / 2 + dy]];
  }

  function at(x, y) {
    let el = document.elementFromPoint(x, y);
    while (el && el.tagName === 'IFRAME') {
      const rect = el.getBoundingClientRect();
      x -= rect.left; y -= rect.top;
      el = el.contentDocument.elementFromPoint(x, y);
    }
    return el;
  }

  const find = (target) => (target.length === 1 ? elements.get(target[0]) : at(target[0], target[1]));
  const fire = (el, ...types) => types.forEach((type) => el.dispatchEvent(new Event(type, { bubbles: true })));

  function field(target) {  // whether it can be typed into, and how
    let el = find(target);
    if (el && el.tagName === 'LABEL' && el.control) el = el.control;
    if (!el) return { error: 'there is nothing' };
    if (el.isContentEditable) return { how: 'keys' };
    if (!/^(INPUT|TEXTAREA)$/.test(el.tagName) || /^(checkbox|radio|button|submit|reset|image|file|range)$/.test(el.type)) {
      return { error: 'it is no field to type into' };
    }
    if (el.disabled) return { error: 'the field is disabled' };
    return { how: /^(date|time|month|week|color|datetime-local)$/.test(el.type) ? 'value' : 'keys' };
  }

  function setValue(target, text) {
    const el = find(target);
    el.value = text;
    fire(el, 'input', 'change');
    return el.value === text ? {} : { error: `a ${el.type} field takes ${el.type === 'date' ? 'YYYY-MM-DD' : el.type === 'time' ? 'HH:MM (24 hours)' : 'another form'}` };
  }

  function selectAll(target) {
    const el = find(target);
    if (el.select && document.activeElement === el) el.select();
    else if (el.isContentEditable) document.execCommand('selectAll');
  }

  function choose(target, wanted) {
    let el = find(target);
    if (el && el.tagName === 'OPTION') el = el.closest('select');
    if (!el || el.tagName !== 'SELECT') return { error: 'it is no list to select from' };
    if (wanted.length > 1 && !el.multiple) return { error: 'the list takes one option' };
    const found = wanted.map((text) => [...el.options].find((o) => clean(o.text) === clean(text)) ||
      [...el.options].find((o) => clean(o.text).toLowerCase() === clean(text).toLowerCase()));
    const missing = wanted.find((_, i) => !found[i]);
    if (missing !== undefined) return { error: `the list has no option ${quote(missing, 80)}` };
    el.focus();
    for (const option of el.options) option.selected = found.includes(option);
    fire(el, 'input', 'change');
    return {};
  }

  function scroll(target, down) {
    const start = target.length ? find(target) : document.scrollingElement;
    if (!start) return { error: 'there is nothing to scroll' };
    let el = start;
    while (el && !(el.scrollHeight > el.clientHeight && (el === document.scrollingElement || el.tagName === 'TEXTAREA' || el.tagName === 'SELECT' ||
      /auto|scroll/.test(getComputedStyle(el).overflowY)))) el = el.parentElement;
    if (!el) return { error: 'it cannot be scrolled' };
    el.scrollTop += down;
    fire(el, 'scroll');
    return {};
  }

  // A window of its own: pages behind others in one window get a frame a second, and their mouse waits for it.
  const openWindow = (width, height) => { native.open('about:blank', '_blank', `popup,width=${width},height=${height}`); };

  window.gymrl = { openWindow, advance, begin, look, reach, field, setValue, selectAll, choose, scroll, shortcut, utterance, tree,
    corners,
    ref, known: (el) => refs.has(el), clean };
})();
