// What the actions need to know of the page, and what they do to it beside the mouse and the keys.
(() => {
  'use strict';
  const { element, box, offset, clean, quote } = gymrl;

  function reach(number) {  // a point at which the mouse meets the element
    const el = element(number);
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
    const el = element(number), range = document.createRange(), [dx, dy] = offset(el);
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

  const find = (target) => (target.length === 1 ? element(target[0]) : at(target[0], target[1]));
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

  Object.assign(gymrl, { reach, corners, field, setValue, selectAll, choose, scroll });
})();
