// The page as text: a line for every element that can be seen, with its reference, role, words and state.
(() => {
  'use strict';
  const { listens } = gymrl;
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

  function forget(at) {  // all references; and whether the middle of every element is told from now on
    refs = new WeakMap(); elements = new Map(); positions = at;
  }

  Object.assign(gymrl, { tree, read, ref, forget, box, offset, clean, quote, element: (number) => elements.get(number),
    known: (el) => refs.has(el) });
})();
