// The first of four scripts that run in every page before its own: a clock that only moves when it is told to, seeded
// chance, no ways out of the page, a clipboard of its own, and which elements listen. Python speaks to them as `gymrl`.
(() => {
  'use strict';
  const START = Date.UTC(2026, 0, 1);
  const native = { Date, setTimeout: window.setTimeout.bind(window), frame: window.requestAnimationFrame.bind(window),
    open: window.open.bind(window) };

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

  const innerWindows = () => [...document.querySelectorAll('iframe')].map((f) => f.contentWindow).filter((w) => {
    try { return Boolean(w && w.gymrl); } catch { return false; }
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

  // A window of its own: pages behind others in one window get a frame a second, and their mouse waits for it.
  const openWindow = (width, height) => { native.open('about:blank', '_blank', `popup,width=${width},height=${height}`); };

  window.gymrl = { native, advance, selectedText, shortcut, listens, openWindow };
})();
