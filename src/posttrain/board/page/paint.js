// What is on the canvas of a chart: axes, curves, bands and points.

import {
  gaps,
  linearTicks,
  logTicks,
  room,
  smooth,
  tickTexts,
  timeText,
  timeTicks,
} from "./scale.js";
import {colourOf} from "./swatch.js";

const MIN_SMOOTHED = 30; // points; fewer are drawn as they are
const DOTS = 30; // a curve with at most so many points shows each of them
const MANY = 8; // with more curves, bands and points would hide them

/** Draw axes, and return the scales and what of the curves can be drawn; null if nothing can. */
export function layOut(pen, input, width, height) {
  const {log, smoothing, range, axis} = input;
  const curves = input.curves
    .map((curve) => {
      const keep = (i) =>
        (!log || curve.ys[i] > 0) &&
        (!range || (curve.xs[i] >= range[0] && curve.xs[i] <= range[1]));
      const kept = curve.xs.flatMap((_, i) => (keep(i) ? [i] : []));
      const of = (list) => list && kept.map((i) => list[i]);
      const broken = gaps(curve.steps ?? curve.xs);
      const line =
        smoothing > 0 && curve.xs.length >= MIN_SMOOTHED
          ? smooth(curve.ys, smoothing, broken)
          : null;
      return {
        ...curve,
        xs: of(curve.xs),
        ys: of(curve.ys),
        low: of(curve.low),
        high: of(curve.high),
        line: of(line),
        breaks: new Set(kept.flatMap((i, n) => (broken.has(i) ? [n] : []))),
      };
    })
    .filter(({xs}) => xs.length);
  if (!curves.length) return null;

  // A loop, as Math.min(...list) of a long list overflows the stack.
  let y0 = Infinity,
    y1 = -Infinity,
    x0 = Infinity,
    x1 = -Infinity;
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
  const right = width - 10,
    top = 8,
    bottom = height - 22;
  const scaled = log ? Math.log10 : (value) => value;
  const [s0, s1] = [scaled(y0), scaled(y1)];
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (right - left);
  const y = (value) => bottom - ((scaled(value) - s0) / (s1 - s0)) * (bottom - top);
  const back = (pixel) => x0 + ((pixel - left) / (right - left)) * (x1 - x0);

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
  const xTicks =
    axis === "time"
      ? timeTicks(x0, x1, many)
      : linearTicks(x0, x1, many).filter((tick) => axis !== "step" || Number.isInteger(tick));
  const xTexts = axis === "time" ? xTicks.map(timeText) : tickTexts(xTicks);
  pen.textBaseline = "top";
  for (const [i, tick] of xTicks.entries()) {
    const text = xTexts[i];
    const half = pen.measureText(text).width / 2;
    pen.textAlign = x(tick) + half > width ? "right" : "center";
    pen.fillText(text, x(tick) + half > width ? width - 1 : x(tick), bottom + 7);
    line(pen, colourOf("--line"), x(tick), bottom, x(tick), bottom + 4);
  }
  return {
    curves,
    x,
    y,
    back,
    x0,
    x1,
    y0,
    y1,
    left,
    right,
    top,
    bottom,
    places: [...places].sort((a, b) => a - b),
  };
}

function line(pen, colour, x0, y0, x1, y1) {
  pen.strokeStyle = colour;
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

export function drawCurves(pen, frame, {log}) {
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
