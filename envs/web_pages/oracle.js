// The perfect player: `gymrl.oracle(task, points)` is what it does next, as a list of commands. It reads the page and the
// task's words. It is loaded when it is first asked.
(() => {
  'use strict';
  const { clean, ref, reach, known, utterance } = gymrl;
  let points = false;  // whether places are coordinates
  let memory = {};  // what it has seen in this episode

  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seen = (el) => Boolean(el) && el.checkVisibility({ checkVisibilityCSS: true });
  const words = (el) => clean(el.textContent);
  const said = (pattern) => (utterance().match(pattern) || []).slice(1);
  const quoted = () => said(/"(.*)"/)[0];
  const nth = () => Number(said(/(\d)(?:st|nd|rd|th)/)[0]);

  function place(el) {
    if (!points && !known(el)) el = [...el.querySelectorAll('*')].find(known) || (el.closest('*') && ancestors(el).find(known)) || el;
    if (!points) return [ref(el)];
    const spot = reach(ref(el));
    if (spot.error) throw new Error(spot.error);
    return [Math.round(spot.x), Math.round(spot.y)];
  }
  const ancestors = (el) => (el.parentElement ? [el.parentElement, ...ancestors(el.parentElement)] : []);

  const click = (el) => [{ name: 'click', targets: [place(el)] }];
  const hover = (el) => [{ name: 'hover', targets: [place(el)] }];
  const type = (el, text) => [{ name: 'type', targets: [place(el)], texts: [String(text)] }];
  const select = (el, ...texts) => [{ name: 'select', targets: [place(el)], texts }];
  const press = (...keys) => keys.map((key) => ({ name: 'press', texts: [key] }));
  const scroll = (el, number) => [{ name: 'scroll', targets: [place(el)], number }];
  const clickAt = (x, y) => [{ name: 'click', targets: [[Math.round(x), Math.round(y)]] }];
  const named = (selector, text) => all(selector).find((el) => seen(el) && words(el) === text);
  const submit = () => click(all('button, .final').find((el) => seen(el) && /^(submit|login|search|ok)$/i.test(words(el))));
  const fill = (...pairs) => {
    const next = pairs.find(([el, text]) => el.value !== String(text));
    return next && type(next[0], next[1]);
  };
  const mark = (text) => {  // all of an element's text
    if (!points) return [{ name: 'drag', targets: [place(text), place(text)] }];
    return [{ name: 'drag', targets: gymrl.corners(ref(text)) }];
  };

  // ---- parts that tasks share ----------------------------------------------------------------------------------------
  function button() {
    return click(named('#area button', quoted() || said(/button (\w+)\./)[0] || 'Click Me!'));
  }

  function checkboxes() {
    const wanted = new Set(said(/^Select (.*) and click Submit/)[0].split(', '));
    const next = all('#area input[type=checkbox]').find((el) => el.checked !== wanted.has(words(el.parentElement)));
    return next ? click(next) : submit();
  }

  function date() {
    const wanted = said(/(\d\d\/\d\d\/\d{4})/)[0], [month, day, year] = wanted.split('/').map(Number);
    if (one('#datepicker').value === wanted) return submit();
    if (!seen(one('#ui-datepicker-div'))) return click(one('#datepicker'));
    const names = ['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September', 'October', 'November', 'December'];
    const shown = Number(words(one('.ui-datepicker-year'))) * 12 + names.indexOf(words(one('.ui-datepicker-month'))) + 1;
    const far = year * 12 + month - shown;
    if (far) return click(one(far < 0 ? '.ui-datepicker-prev' : '.ui-datepicker-next'));
    return click(all('.ui-datepicker-calendar a').find((el) => Number(words(el)) === day));
  }

  function link() {
    const text = quoted(), links = all('.alink').filter((el) => clean(el.innerHTML) === clean(text));
    const open = links.find(seen);
    if (open) return click(open);
    if (!links.length) return click(all('.ui-tab')[1]);  // its tab was emptied
    const panel = links[0].closest('[role=tabpanel]');
    return click(document.getElementById(panel.getAttribute('aria-labelledby')));
  }

  function slide(slider, wanted) {  // by the keyboard: pages of a fifth, then single steps
    const handle = slider.querySelector('.ui-slider-handle'), $slider = $(slider);
    const left = wanted - $slider.slider('value');
    if (!left) return null;
    if (document.activeElement !== handle) return click(handle);
    const leap = Math.max(1, ($slider.slider('option', 'max') - $slider.slider('option', 'min')) / 5);
    const count = Math.abs(left), leaps = leap === Math.round(leap) ? Math.floor(count / leap) : 0;
    const keys = [...Array(leaps).fill(left > 0 ? 'PageUp' : 'PageDown'), ...Array(count - leaps * leap).fill(left > 0 ? 'ArrowRight' : 'ArrowLeft')];
    return press(...keys.slice(0, 20));
  }

  const SIZES = { large: 20, small: 10 };
  function shapesLike(text) {
    const parts = text.split(' ');
    return all('#area_svg > *').filter((el) => {
      const letter = el.tagName === 'text', content = el.textContent;
      const kind = letter ? (/\d/.test(content) ? 'digit' : 'letter') : 'shape';
      const name = letter ? content : { rect: 'rectangle', circle: 'circle', polygon: 'triangle' }[el.tagName];
      const size = letter ? parseFloat(el.getAttribute('font-size')) : el.getBBox().width;
      return parts.every((part) => (SIZES[part] ? Math.abs(size - SIZES[part]) < 3 :
        part === 'item' || part === el.getAttribute('fill') || part === kind || part === name));
    });
  }

  function autocomplete() {
    const [start, end] = [said(/starts with "(.*?)"/)[0], said(/ends with "(.*?)"/)[0] || ''];
    const fits = (text) => text.startsWith(start) && text.endsWith(end);
    const field = one('#tags'), offered = all('.ui-menu-item').filter(seen);
    const right = offered.find((el) => fits(words(el)));
    if (right) return click(right);
    return fits(field.value) && !offered.length ? submit() : type(field, start);
  }

  function copied(source) {
    const answer = one('#answer-input');
    if (answer.value === source.value) return submit();
    return [...click(source), ...press('Control+a', 'Control+c'), ...click(answer), ...press('Control+a', 'Control+v')];
  }

  // ---- the tasks -----------------------------------------------------------------------------------------------------
  const tasks = {
    'ascending-numbers': () => click(all('svg text').find((el) => words(el) === '1') || one('svg rect')),
    'choose-date': date, 'choose-date-easy': date, 'choose-date-medium': date, 'choose-date-nodelay': date,
    'choose-list': () => {
      const list = one('#options'), wanted = said(/^Select (.*) from the list/)[0];
      return clean(list.selectedOptions[0].text) === wanted ? submit() : select(list, wanted);
    },
    'circle-center': () => {
      const circle = one('circle.black-circle');
      return one('#blue-circle') ? submit() : clickAt(Number(circle.getAttribute('cx')), Number(circle.getAttribute('cy')) + 50);
    },
    'click-button': button, 'click-test': button, 'click-test-2': button, 'click-test-transfer': button, 'unicode-test': button,
    'click-button-sequence': () => {
      const first = !memory.clicked;
      memory.clicked = true;
      return click(named('button', first ? 'ONE' : 'TWO'));
    },
    'click-checkboxes': checkboxes, 'click-checkboxes-large': checkboxes, 'click-checkboxes-transfer': checkboxes,
    'click-collapsible': () => (all('.ui-accordion-content').some(seen) ? submit() : click(one('.ui-accordion-header'))),
    'click-collapsible-2': link, 'click-collapsible-2-nodelay': link,
    'click-color': () => click(all('#area .color').find((el) => el.getAttribute('data-color') === said(/on the (.*) colored/)[0])),
    'click-dialog': () => click(one('.ui-dialog-titlebar-close')),
    'click-dialog-2': () => click(quoted() === 'x' ? one('.ui-dialog-titlebar-close') : named('.ui-dialog button', quoted())),
    'click-link': link, 'click-tab-2': link, 'click-tab-2-easy': link, 'click-tab-2-medium': link, 'click-tab-2-hard': link,
    'click-menu': () => {
      const path = said(/^Select (.*)$/)[0].split('>');
      const items = path.map((name) => all('#menu .ui-menu-item-wrapper').find((el) => words(el) === name));
      const open = items.filter(seen);
      return open.length === path.length ? click(open[open.length - 1]) : hover(open[open.length - 1]);
    },
    'click-menu-2': () => {
      if (!seen(one('#menu'))) return click(one('#open-menu'));
      const icon = one('#query .ui-icon');
      const item = icon ? one('#menu .' + String(icon.className).split(' ')[1]).parentElement
        : all('#menu .ui-menu-item > div').find((el) => words(el) === said(/labeled "(.*?)"/)[0]);
      return seen(item) ? click(item) : hover(all('#menu > li > div').find((el) => words(el) === 'Playback'));
    },
    'click-option': () => {
      const option = all('input[type=radio]').find((el) => words(el.parentElement) === said(/^Select (.*) and click/)[0]);
      return option.checked ? submit() : click(option);
    },
    'click-scroll-list': () => {
      const list = one('#options'), wanted = `, ${said(/^Select (.*) from the scroll/)[0]}, `;
      const names = [...list.options].map((o) => clean(o.text)).filter((text) => wanted.includes(`, ${text}, `));
      const chosen = [...list.selectedOptions].map((o) => clean(o.text));
      return names.join() === chosen.join() ? submit() : select(list, ...names);
    },
    'click-shape': () => click(shapesLike(said(/^Click on an? (.*)$/)[0])[0]),
    'click-tab': () => click(named('#area ul a', said(/on (Tab #\d)/)[0])),
    'click-widget': () => click(one(`#area [data-type=${quoted()}]`)),
    'copy-paste': () => copied(one('#to-copy')),
    'copy-paste-2': () => copied(one(`#text-${nth()}`)),
    'count-shape': () => click(named('#count-buttons button', String(shapesLike(said(/^How many (.*)s are there/)[0]).length))),
    'enter-date': () => fill([one('#tt'), said(/(\d\d)\/(\d\d)\/(\d{4})/).map((part, i, [m, d, y]) => [y, m, d][i]).join('-')]) || submit(),
    'enter-password': () => fill([one('#password'), quoted()], [one('#verify'), quoted()]) || submit(),
    'enter-text': () => fill([one('#tt'), quoted()]) || submit(),
    'enter-text-2': () => fill([one('#tt'), /upper/.test(utterance()) ? quoted().toUpperCase() : quoted().toLowerCase()]) || submit(),
    'enter-time': () => {
      const [hours, minutes, half] = said(/(\d+):(\d\d) (AM|PM)/);
      return fill([one('#tt'), `${String((Number(hours) % 12) + (half === 'PM' ? 12 : 0)).padStart(2, '0')}:${minutes}`]) || submit();
    },
    'find-greatest': () => {  // turns every card once, and then the best again
      const cards = all('#cardholder > div'), values = (memory.values = memory.values || []);
      const open = cards.findIndex((el) => !el.classList.contains('hidden'));
      if (open >= 0) values[open] = Number(words(cards[open]));
      const next = cards.findIndex((_, i) => values[i] === undefined);
      if (next >= 0) return click(cards[next]);
      const best = values.indexOf(Math.max(...values));
      return open === best ? submit() : click(cards[best]);
    },
    'find-word': () => fill([one('#answer-input'), words(one('#area p')).split(' ')[Number(said(/(\d+)(?:st|nd|rd|th)/)[0]) - 1].replace(/[^a-zA-Z]/g, '')]) || submit(),
    'focus-text': () => click(one('#tt')),
    'focus-text-2': () => click(one(`#tt${nth()}`)),
    'form-sequence': () => {
      const moved = slide(one('#slider'), Number(said(/^Select (-?\d+) /)[0])), box = one(`#checkbox-${nth()}`);
      return moved || (box.checked ? submit() : click(box));
    },
    'form-sequence-2': () => {
      const [radio, text, box] = said(/the (\d)\w\w radio .* "(-?\d+)" into the (\d)/);
      const option = all('input[type=radio]')[radio - 1];
      return option.checked ? fill([one(`#input-${box}`), text]) || submit() : click(option);
    },
    'form-sequence-3': () => {
      const [option, name] = said(/^Choose (.*) from .* "(.*)"/);
      if (one('#dropdown').value === option) return click(named('#buttons button', name));
      const item = all('.selectric-items li').find((el) => words(el) === option);
      return click(seen(item) ? item : one('.selectric'));
    },
    'generate-number': () => {
      const shown = words(one('#display-number')), number = Number(shown), [bound] = said(/(\d+)/);
      const right = /less/.test(utterance()) ? number < bound : /greater/.test(utterance()) ? number > bound
        : Math.abs(number % 2) === (/odd/.test(utterance()) ? 1 : 0);
      return click(one(shown !== '-' && right ? '#submit' : '#generate'));
    },
    'grid-coordinate': () => click(document.getElementById(said(/(\(.*\))/)[0])),
    'guess-number': () => {
      memory = { low: 0, high: 9, ...memory };
      if (seen(one('#higher'))) memory.low = Math.max(memory.low, Number(words(one('#higher span'))) + 1);
      if (seen(one('#lower'))) memory.high = Math.min(memory.high, Number(words(one('#lower span'))) - 1);
      return fill([one('#tt'), Math.floor((memory.low + memory.high) / 2)]) || submit();
    },
    'highlight-text': () => (/\w/.test(String(getSelection())) ? submit() : mark(one('#randomText'))),
    'identify-shape': () => {
      const shape = one('#area_svg > *'), text = shape.textContent;
      const kind = { rect: 'Rectangle', circle: 'Circle', polygon: 'Triangle' }[shape.tagName] || (/\d/.test(text) ? 'Number' : 'Letter');
      return click(named('#area-buttons button', kind));
    },
    'login-user': () => {
      const [user, password] = said(/username "(.*?)" and the password "(.*?)"/);
      return fill([one('#username'), user], [one('#password'), password]) || submit();
    },
    'multi-orderings': () => {
      const [genre, name, year] = said(/^Search for (.*) movies directed by (.*) from year (\d+)/);
      const field = (title) => all('tr').find((row) => words(row.querySelector('th')) === title).querySelector('input');
      return fill([field('Genre'), genre], [field('Director'), name], [field('Year'), year]) || submit();
    },
    'navigate-tree': () => {
      const name = quoted(), item = all('#tree span').find((el) => words(el) === name);
      const path = [...ancestors(item).filter((el) => el.tagName === 'LI').reverse().map((li) => li.querySelector('span')), item];
      const next = path.find((el, i) => el === item || !seen(path[i + 1]));
      return click(next);
    },
    'odd-or-even': () => {
      for (const row of all('.row')) {
        const wanted = row.querySelector(Number(words(row.querySelector('.display-number'))) % 2 ? '.odd' : '.even');
        if (!wanted.classList.contains('selected')) return click(wanted);
      }
      return submit();
    },
    'read-table': () => {
      const key = said(/the value of (.*) into/)[0], row = all('#tab tr').find((each) => words(each.children[0]) === key);
      return fill([one('#tt'), words(row.children[1])]) || submit();
    },
    'scroll-text': () => fill([one('#answer-input'), clean(one('#text-area').value).split(' ').pop().replace('.', '')]) || submit(),
    'scroll-text-2': () => {
      const area = one('#text-area'), down = /bottom/.test(utterance());
      const there = down ? area.scrollTop + area.clientHeight > area.scrollHeight - 8 : area.scrollTop < 8;
      return there ? submit() : scroll(area, down ? 2000 : -2000);
    },
    'simple-algebra': () => {
      const [left, right] = words(one('#math-problem')).split(' = '), [a, sign, b] = left.split(' ');
      const total = Number(right), plus = sign === '+';
      const x = a === 'x' ? (plus ? total - b : total + Number(b)) : plus ? total - a : a - total;
      return fill([one('#math-answer'), x]) || submit();
    },
    'simple-arithmetic': () => {
      const [a, sign, b] = words(one('#math-problem')).split(' ');
      return fill([one('#math-answer'), { '+': Number(a) + Number(b), '-': a - b, x: a * b }[sign]]) || submit();
    },
    'text-transform': () => fill([one('#tt'), words(one('#captcha'))]) || submit(),
    'use-autocomplete': autocomplete, 'use-autocomplete-nodelay': autocomplete,
    'use-slider': () => slide(one('#slider'), Number(said(/^Select (-?\d+) /)[0])) || submit(),
    'use-slider-2': () => {
      const wanted = JSON.parse(said(/(\[.*\])/)[0]);
      return [1, 2, 3].map((i) => slide(one(`#slider-${i}`), wanted[i - 1])).find(Boolean) || submit();
    },
    'use-spinner': () => {
      const left = Number(said(/^Select (-?\d+) /)[0]) - Number(one('#spinner').value);
      if (!left) return submit();
      return Array(Math.min(20, Math.abs(left))).fill(click(one(left > 0 ? '.ui-spinner-up' : '.ui-spinner-down'))).flat();
    },
    'visual-addition': () => fill([one('#math-answer'), all('.addition-block').length]) || submit(),
  };
  tasks['click-collapsible-nodelay'] = tasks['click-collapsible'];
  tasks['enter-text-dynamic'] = tasks['enter-text'];

  gymrl.oracle = (task, coordinates) => {
    points = coordinates;
    return tasks[task]();
  };
  gymrl.oracle.tasks = Object.keys(tasks).sort();
})();
