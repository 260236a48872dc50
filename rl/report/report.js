"use strict";
(() => {
  const { box, charts } = JSON.parse(document.getElementById("chart-data").textContent);
  for (const element of document.querySelectorAll(".needs-script")) if (element.id !== "no-match") element.hidden = false;

  const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);
  const three = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1000)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return trim(value.toPrecision(3));
  };
  const count = (value) => {
    const size = Math.abs(value);
    for (const [least, unit, name] of [[1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]])
      if (size >= least && size < 1e12) return trim((value / unit).toPrecision(3)).replace("e+3", "000") + name;
    return size >= 1000 && size < 1e4 ? value.toFixed(0) : three(value);
  };
  const show = (value, unit) =>
    value === null || value === undefined ? "not finite"
      : unit === "share" ? three(100 * value) + " %" : count(value) + (unit === "s" ? " s" : "");

  const decayed = (values, weight) => {
    let total = 0, share = 0;
    return values.map((value) => {
      if (value !== null) [total, share] = [weight * total + value, weight * share + 1];
      return [total, share];
    });
  };
  const smooth = (values, weight) => {
    const before = decayed(values, weight), after = decayed([...values].reverse(), weight).reverse();
    return values.map((value, i) =>
      value === null ? null : (before[i][0] + after[i][0] - value) / (before[i][1] + after[i][1] - 1));
  };
  const within = (share) => Math.min(1, Math.max(0, share));
  const atX = (data, i) => {
    const middle = (data.first[i] + (data.last ? data.last[i] : data.first[i])) / 2;
    return box.left + within((middle - data.x[0]) / (data.x[1] - data.x[0])) * (box.right - box.left);
  };
  const forth = (data, value) => (data.log && value !== null ? Math.log10(Math.max(value, data.y[0])) : value);
  const back = (data, value) => (data.log && value !== null ? 10 ** value : value);
  const atY = (data, value) => {
    const low = forth(data, data.y[0]), high = forth(data, data.y[1]);
    return box.bottom - within((forth(data, value) - low) / (high - low)) * (box.bottom - box.top);
  };
  const path = (data, values) => {
    let text = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) { pen = "M"; return; }
      text += pen + atX(data, i).toFixed(1) + " " + atY(data, value).toFixed(1);
      pen = "L";
    });
    return text;
  };

  let weight = 0.8;
  const smoothed = (data) => smooth(data.mean.map((v) => forth(data, v)), weight).map((v) => back(data, v));
  const slider = document.getElementById("smoothing");
  const redraw = () => {
    weight = Number(slider.value);
    document.getElementById("smoothing-value").textContent = weight.toFixed(2);
    for (const figure of document.querySelectorAll("figure.chart")) {
      const data = charts[figure.dataset.chart], line = figure.querySelector(".line");
      if (data && line) line.setAttribute("d", path(data, smoothed(data)));
    }
  };
  if (slider) { slider.addEventListener("input", redraw); redraw(); }

  for (const figure of document.querySelectorAll("figure.chart")) {
    const data = charts[figure.dataset.chart];
    if (!data) continue;
    const svg = figure.querySelector("svg"), output = figure.querySelector("output"), before = output.textContent;
    const legend = [...figure.querySelectorAll(".legend span")], shares = legend.map((span) => span.textContent);
    const length = data.first.length;
    const cursor = document.createElementNS(svg.namespaceURI, "path"), mark = document.createElementNS(svg.namespaceURI, "circle");
    cursor.setAttribute("class", "cursor");
    mark.setAttribute("class", "mark");
    mark.setAttribute("r", "4");
    let place = length - 1;
    const read = (i) => {
      place = Math.min(length - 1, Math.max(0, i));
      const x = atX(data, place).toFixed(1);
      cursor.setAttribute("d", `M${x} ${box.top}V${box.bottom}`);
      svg.append(cursor);
      const last = data.last ? data.last[place] : data.first[place];
      const steps = last === data.first[place] ? `step ${last}` : `steps ${data.first[place]}–${last}`;
      if (data.parts) {
        output.textContent = steps;
        data.parts.forEach((part, p) => {
          legend[p].textContent = `${show(part.share[place], "share")}, ${show(part.seconds[place], "s")}`;
        });
        return;
      }
      const value = data.mean[place];
      const range = data.low && value !== null ? ` (${show(data.low[place], data.unit)} to ${show(data.high[place], data.unit)})` : "";
      output.textContent = `${steps}: ${show(value, data.unit)}${range}`;
      if (value === null) { mark.remove(); return; }
      mark.setAttribute("cx", x);
      mark.setAttribute("cy", atY(data, value).toFixed(1));
      svg.append(mark);
    };
    const leave = () => {
      cursor.remove();
      mark.remove();
      output.textContent = before;
      legend.forEach((span, p) => { span.textContent = shares[p]; });
    };
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect(), x = ((event.clientX - frame.left) / frame.width) * box.width;
      let nearest = 0;
      for (let i = 1; i < length; i++) if (Math.abs(atX(data, i) - x) < Math.abs(atX(data, nearest) - x)) nearest = i;
      read(nearest);
    });
    svg.addEventListener("pointerleave", leave);
    svg.setAttribute("tabindex", "0");
    output.setAttribute("aria-live", "polite");
    svg.addEventListener("keydown", (event) => {
      const stride = event.shiftKey ? 10 : 1;
      const to = { ArrowLeft: place - stride, ArrowRight: place + stride, Home: 0, End: length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      read(to);
    });
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) read(place); });
    svg.addEventListener("blur", leave);
  }

  const buttons = [...document.querySelectorAll(".filters button")];
  for (const button of buttons)
    button.addEventListener("click", () => {
      let left = 0;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      for (const episode of document.querySelectorAll(".episode")) {
        episode.hidden = button.dataset.kind !== "" && episode.dataset.kind !== button.dataset.kind;
        if (!episode.hidden) left++;
      }
      for (const shelf of document.querySelectorAll(".shelf")) shelf.hidden = !shelf.querySelector(".episode:not([hidden])");
      document.getElementById("no-match").hidden = left > 0;
    });
})();
