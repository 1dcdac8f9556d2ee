// A chart on a canvas: curves over a common x axis, with read-out and zoom by pointer and keys.

import {$, el, put} from "./dom.js";
import {number, whole} from "./format.js";
import {gaps, linearTicks, logTicks, nearest, room, smooth, tickTexts, timeText, timeTicks} from "./scale.js";

const MIN_SMOOTHED = 30; // points; fewer are drawn as they are
const MAX_READ = 16; // runs in the read-out beside the pointer
const DOTS = 30; // a curve with at most so many points shows each of them
const MANY = 8; // with more curves, bands and points would hide them

const charts = new Set();
let reading = null; // the chart whose values the tooltip shows
// A canvas keeps the colours that it was drawn in.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.paint();
  for (const canvas of document.querySelectorAll(".swatch")) drawSwatch(canvas);
});

/** Colour of a custom property as it is now, light or dark. */
export const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A short line in the colour and the dash of a curve. */
export function swatch(colour, dash) {
  const canvas = el("canvas", {class: "swatch", width: 44, height: 20, "aria-hidden": "true", "data-colour": colour, "data-dash": dash.join(" ")});
  drawSwatch(canvas);
  return canvas;
}

function drawSwatch(canvas) {
  const pen = canvas.getContext("2d");
  pen.setTransform(2, 0, 0, 2, 0, 0);
  pen.clearRect(0, 0, 22, 10);
  pen.strokeStyle = colourOf(canvas.dataset.colour);
  pen.lineWidth = 3;
  pen.setLineDash(canvas.dataset.dash.split(" ").filter(Boolean).map(Number));
  pen.beginPath();
  pen.moveTo(0, 5);
  pen.lineTo(22, 5);
  pen.stroke();
}

/**
 * A chart in `host`. Its `draw` takes {curves, log, smoothing, range, axis, label}: a curve has id,
 * name, colour, dash, xs, ys and, or null, low, high and steps; `range` is the zoom; `axis` is "step",
 * "tokens" or "time". `onzoom` gets a new range, or null; without it nothing can be zoomed.
 */
export function makeChart(host, {height = 190, onzoom = null} = {}) {
  const canvas = el("canvas", {tabindex: 0, role: "img"});
  const cover = el("canvas", {class: "cover", "aria-hidden": "true"});
  const spoken = el("p", {class: "sr", "aria-live": "polite"});
  put(host, canvas, cover, spoken);
  host.classList.add("plot");
  let input = null, width = 0, frame = null, drag = null;
  let at = -1, atX = 0, pointer = null; // the place that is read out, by index and by x

  const chart = {
    canvas,
    draw(next) { input = next; paint(); },
    resize(next) { height = next; paint(); },
    paint,
    close() { observer.disconnect(); charts.delete(chart); if (at >= 0) leave(); },
  };
  const observer = new ResizeObserver(() => {
    const now = Math.floor(host.clientWidth);
    if (now !== width) { width = now; paint(); }
  });
  observer.observe(host);
  charts.add(chart);

  function sized(node) {
    const scale = window.devicePixelRatio || 1;
    if (node.width !== width * scale || node.height !== height * scale) {
      node.width = width * scale;
      node.height = height * scale;
      node.style.width = `${width}px`;
      node.style.height = `${height}px`;
    }
    const pen = node.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    return pen;
  }

  function paint() {
    if (!input || width <= 0) return;
    const pen = sized(canvas);
    frame = layOut(pen, input, width, height);
    canvas.dataset.points = frame ? frame.curves.map(({xs}) => xs.length).join(" ") : "";
    canvas.dataset.range = frame ? `${frame.x0} ${frame.x1} ${frame.y0} ${frame.y1}` : "";
    canvas.setAttribute("aria-label", frame
      ? `${input.label}: ${frame.curves.map(({name, ys}) => `${name}, last ${number(ys.at(-1))}`).slice(0, 6).join("; ")}. Arrow keys read out values${onzoom ? ", plus and minus zoom" : ""}.`
      : `${input.label}: nothing to draw`);
    if (frame) drawCurves(pen, frame, input);
    else {
      pen.fillStyle = colourOf("--muted");
      pen.font = "12.5px system-ui, sans-serif";
      pen.fillText(input.note ?? "Nothing to draw", 4, 30);
    }
    if (at >= 0 && !frame) leave();
    else if (at >= 0 && !drag) go(nearest(frame.places, atX), ...pointer ?? []); // new points have come
  }

  // Read-out

  function mark() {
    const pen = sized(cover);
    if (!frame) return null;
    if (drag && Math.abs(drag.to - drag.from) > 3) {
      pen.fillStyle = colourOf("--accent");
      pen.globalAlpha = 0.16;
      pen.fillRect(Math.min(drag.from, drag.to), frame.top, Math.abs(drag.to - drag.from), frame.bottom - frame.top);
      return null;
    }
    if (at < 0) return null;
    const x = frame.places[at];
    pen.strokeStyle = colourOf("--muted");
    pen.setLineDash([3, 3]);
    pen.beginPath();
    pen.moveTo(frame.x(x), frame.top);
    pen.lineTo(frame.x(x), frame.bottom);
    pen.stroke();
    const rows = [];
    for (const curve of frame.curves) {
      if (x < curve.xs[0] || x > curve.xs.at(-1)) continue;
      const i = nearest(curve.xs, x);
      pen.fillStyle = colourOf(curve.colour);
      pen.beginPath();
      pen.arc(frame.x(curve.xs[i]), frame.y(curve.ys[i]), 3.5, 0, 7);
      pen.fill();
      rows.push({curve, i, value: curve.ys[i]});
    }
    return {x, rows: rows.sort((a, b) => b.value - a.value)};
  }

  function xText(x) {
    return input.axis === "time" ? timeText(Math.round(x)) : input.axis === "tokens" ? `${number(x, 5)} tokens` : `step ${whole(x)}`;
  }

  function readOut({x, rows}, clientX, clientY) {
    const kept = rows.slice(0, MAX_READ);
    const smoothed = kept.some(({curve}) => curve.line), spread = kept.some(({curve}) => curve.low);
    const head = (shown, text, kind) => shown ? el("th", {scope: "col", class: kind}, text) : null;
    const cell = (shown, text, kind = "") => shown ? el("td", {class: `muted ${kind}`}, text) : null;
    const tooltip = $("#tooltip");
    put(tooltip, el("table", {}, el("thead", {}, el("tr", {}, el("th", {scope: "col"}, xText(x)), head(true, "value"), head(smoothed, "smoothed"), head(spread, "lowest to highest", "spread"))),
      el("tbody", {}, kept.map(({curve, i, value}) => el("tr", {},
        el("td", {}, swatch(curve.colour, curve.dash), el("span", {class: "read-name"}, curve.name), curve.xs[i] === x ? null : el("span", {class: "muted"}, ` at ${xText(curve.xs[i])}`)),
        el("td", {}, el("strong", {}, number(value, 5))), cell(smoothed, curve.line ? number(curve.line[i]) : ""),
        cell(spread, curve.low ? `${number(curve.low[i], 3)} to ${number(curve.high[i], 3)}` : "", "spread"))))),
      rows.length > kept.length ? el("div", {class: "muted"}, `and ${rows.length - kept.length} more below`) : null);
    tooltip.hidden = false;
    reading = chart;
    placeTooltip(clientX, clientY);
    return `${xText(x)}: ${kept.map(({curve, value}) => `${curve.name} ${number(value, 5)}`).join("; ")}`;
  }

  function go(index, clientX, clientY) {
    at = Math.max(0, Math.min(frame.places.length - 1, index));
    atX = frame.places[at];
    pointer = clientX === undefined ? null : [clientX, clientY];
    const values = mark();
    if (!values) return;
    const box = canvas.getBoundingClientRect();
    const text = readOut(values, clientX ?? box.left + frame.x(values.x), clientY ?? box.top + 30);
    if (clientX === undefined) spoken.textContent = text;
  }

  function leave() {
    at = -1;
    drag = null;
    if (reading === chart) $("#tooltip").hidden = true;
    if (frame) sized(cover);
  }

  const localX = (event) => event.clientX - canvas.getBoundingClientRect().left;
  const within = (x) => Math.max(frame.left, Math.min(frame.right, x));

  canvas.addEventListener("pointermove", (event) => {
    if (!frame) return;
    if (drag) {
      drag.to = within(localX(event));
      if (Math.abs(drag.to - drag.from) > 3) { $("#tooltip").hidden = true; mark(); return; }
    }
    go(nearest(frame.places, frame.back(localX(event))), event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (!frame) return;
    // A finger reads out, as dragging it scrolls the page; the fields above the charts zoom.
    if (onzoom && event.pointerType !== "touch" && event.button === 0) {
      drag = {from: within(localX(event)), to: within(localX(event))};
      canvas.setPointerCapture(event.pointerId);
    } else go(nearest(frame.places, frame.back(localX(event))), event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerup", () => {
    const done = drag;
    drag = null;
    if (done && frame && Math.abs(done.to - done.from) > 3) {
      const ends = [frame.back(done.from), frame.back(done.to)].sort((a, b) => a - b);
      leave();
      onzoom(ends);
    }
  });
  // A finger that is lifted leaves the read-out there, until the page is touched elsewhere.
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
  canvas.addEventListener("pointercancel", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("dblclick", () => onzoom?.(null));
  canvas.addEventListener("keydown", (event) => {
    if (!frame || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = frame.places.length - 1;
    const jump = event.shiftKey ? Math.max(1, Math.round(last / 10)) : 1;
    const to = {ArrowLeft: at < 0 ? last : at - jump, ArrowRight: at + jump, Home: 0, End: last}[event.key];
    if (event.key === "Escape") leave();
    if (onzoom && "+-=0".includes(event.key)) {
      const centre = at >= 0 ? frame.places[at] : (frame.x0 + frame.x1) / 2;
      const half = (frame.x1 - frame.x0) * (event.key === "-" ? 1 : 0.25);
      onzoom(event.key === "0" ? null : [centre - half, centre + half]);
    }
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });
  return chart;
}

/** Keep the tooltip beside the pointer and inside the window. */
export function placeTooltip(clientX, clientY) {
  const tooltip = $("#tooltip");
  const {width, height} = tooltip.getBoundingClientRect();
  const window = document.documentElement;
  const left = clientX + 14 + width > window.clientWidth - 8 ? Math.max(8, clientX - 14 - width) : clientX + 14;
  const up = Math.max(8, Math.min(clientY + 14, window.clientHeight - height - 8));
  tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(up)}px)`;
}

/** Draw axes, and return the scales and what of the curves can be drawn; null if nothing can. */
function layOut(pen, input, width, height) {
  const {log, smoothing, range, axis} = input;
  const curves = input.curves.map((curve) => {
    const keep = (i) => (!log || curve.ys[i] > 0) && (!range || curve.xs[i] >= range[0] && curve.xs[i] <= range[1]);
    const kept = curve.xs.flatMap((_, i) => keep(i) ? [i] : []);
    const of = (list) => list && kept.map((i) => list[i]);
    const broken = gaps(curve.steps ?? curve.xs);
    const line = smoothing > 0 && curve.xs.length >= MIN_SMOOTHED ? smooth(curve.ys, smoothing, broken) : null;
    return {...curve, xs: of(curve.xs), ys: of(curve.ys), low: of(curve.low), high: of(curve.high), line: of(line),
      breaks: new Set(kept.flatMap((i, n) => broken.has(i) ? [n] : []))};
  }).filter(({xs}) => xs.length);
  if (!curves.length) return null;

  // A loop, as Math.min(...list) of a long list overflows the stack.
  let y0 = Infinity, y1 = -Infinity, x0 = Infinity, x1 = -Infinity;
  const places = new Set();
  for (const {xs, ys, low, high} of curves) {
    for (let i = 0; i < xs.length; i++) {
      y0 = Math.min(y0, low && (!log || low[i] > 0) ? low[i] : ys[i]);
      y1 = Math.max(y1, high ? high[i] : ys[i]);
      places.add(xs[i]);
    }
    x0 = Math.min(x0, xs[0]);
    x1 = Math.max(x1, xs.at(-1));
  }
  [y0, y1] = room(y0, y1, log);
  if (range) [x0, x1] = range;
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];

  pen.font = "11px system-ui, sans-serif";
  const yTicks = log ? logTicks(y0, y1, height / 48) : linearTicks(y0, y1, height / 48);
  const texts = tickTexts(yTicks);
  const left = 12 + Math.ceil(Math.max(18, ...texts.map((text) => pen.measureText(text).width)));
  const right = width - 10, top = 8, bottom = height - 22;
  const scaled = log ? Math.log10 : (value) => value;
  const [s0, s1] = [scaled(y0), scaled(y1)];
  const x = (value) => left + (value - x0) / (x1 - x0) * (right - left);
  const y = (value) => bottom - (scaled(value) - s0) / (s1 - s0) * (bottom - top);
  const back = (pixel) => x0 + (pixel - left) / (right - left) * (x1 - x0);

  pen.lineWidth = 1;
  pen.fillStyle = colourOf("--muted");
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  yTicks.forEach((tick, i) => {
    const level = Math.round(y(tick)) + 0.5;
    line(pen, colourOf("--grid"), left, level, right, level);
    pen.fillText(texts[i], left - 6, level);
  });
  line(pen, colourOf("--line"), left, bottom + 0.5, right, bottom + 0.5);
  const many = Math.max(2, Math.min(7, (right - left) / 80));
  const xTicks = axis === "time" ? timeTicks(x0, x1, many) : linearTicks(x0, x1, many).filter((tick) => axis !== "step" || Number.isInteger(tick));
  const xTexts = axis === "time" ? xTicks.map(timeText) : tickTexts(xTicks);
  pen.textBaseline = "top";
  for (const [i, tick] of xTicks.entries()) {
    const text = xTexts[i];
    const half = pen.measureText(text).width / 2;
    pen.textAlign = x(tick) + half > width ? "right" : "center";
    pen.fillText(text, x(tick) + half > width ? width - 1 : x(tick), bottom + 7);
    line(pen, colourOf("--line"), x(tick), bottom, x(tick), bottom + 4);
  }
  return {curves, x, y, back, x0, x1, y0, y1, left, right, top, bottom, places: [...places].sort((a, b) => a - b)};
}

function line(pen, colour, x0, y0, x1, y1) {
  pen.strokeStyle = colour;
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function drawCurves(pen, frame, {log}) {
  pen.save();
  pen.beginPath();
  pen.rect(frame.left - 4, 0, frame.right - frame.left + 8, frame.bottom + 3);
  pen.clip();
  pen.lineJoin = "round";
  const bands = frame.curves.length <= MANY;
  for (const curve of frame.curves) {
    const colour = colourOf(curve.colour);
    pen.strokeStyle = pen.fillStyle = colour;
    pen.setLineDash([]);
    if (curve.low && bands) band(pen, frame, curve, log);
    pen.globalAlpha = curve.line ? 0.3 : 1;
    pen.lineWidth = curve.line ? 1 : 1.7;
    pen.setLineDash(curve.dash);
    trace(pen, frame, curve.xs, curve.ys, curve.breaks);
    pen.globalAlpha = 1;
    if (curve.line) {
      pen.lineWidth = 1.9;
      trace(pen, frame, curve.xs, curve.line, curve.breaks);
    }
    pen.setLineDash([]);
    dots(pen, frame, curve);
  }
  pen.restore();
}

function band(pen, frame, {xs, ys, low, high, breaks}, log) {
  pen.globalAlpha = 0.13;
  const bottom = (i) => frame.y(log && !(low[i] > 0) ? ys[i] : low[i]);
  for (let from = 0; from < xs.length;) {
    let to = from + 1;
    while (to < xs.length && !breaks.has(to)) to++;
    pen.beginPath();
    for (let i = from; i < to; i++) pen.lineTo(frame.x(xs[i]), frame.y(high[i]));
    for (let i = to - 1; i >= from; i--) pen.lineTo(frame.x(xs[i]), bottom(i));
    pen.fill();
    from = to;
  }
  pen.globalAlpha = 1;
}

function trace(pen, frame, xs, ys, breaks) {
  pen.beginPath();
  for (let i = 0; i < xs.length; i++) {
    if (i === 0 || breaks.has(i)) pen.moveTo(frame.x(xs[i]), frame.y(ys[i]));
    else pen.lineTo(frame.x(xs[i]), frame.y(ys[i]));
  }
  pen.stroke();
}

/** Each point of a short curve, and points without neighbours, which no line would show. */
function dots(pen, frame, {xs, ys, line: smoothed, breaks}) {
  const all = xs.length <= DOTS && !smoothed && frame.curves.length <= MANY;
  for (let i = 0; i < xs.length; i++) {
    const alone = (i === 0 || breaks.has(i)) && (i === xs.length - 1 || breaks.has(i + 1));
    if (!all && !alone) continue;
    pen.beginPath();
    pen.arc(frame.x(xs[i]), frame.y(ys[i]), 2.4, 0, 7);
    pen.fill();
  }
}
