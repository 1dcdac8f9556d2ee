// Axes and curves as numbers: ticks, smoothing, gaps, the point nearest to a place.

import {number} from "./format.js";

export function linearTicks(low, high, many) {
  const rough = (high - low) / Math.max(1, many);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step =
    power * (rough > 7 * power ? 10 : rough > 3 * power ? 5 : rough > 1.4 * power ? 2 : 1);
  return multiples(low, high, step);
}

function multiples(low, high, step) {
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    ticks.push(Number((k * step).toPrecision(12)));
    if (ticks.length > 100) break; // numbers so close together that adding a step changes nothing
  }
  return ticks;
}

export function logTicks(low, high, many) {
  const span = Math.log10(high / low);
  if (span < 1) return linearTicks(low, high, many).filter((tick) => tick > 0);
  const factors = span < 2 ? [1, 2, 5] : span < 3 ? [1, 3] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) ticks.push(Number(`${factor}e${power}`));
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  const every = Math.ceil(inside.length / (many + 3));
  return inside.filter((_, index) => index % every === 0);
}

const SECONDS = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400,
];

/** Ticks at whole seconds, minutes, hours or days. */
export function timeTicks(low, high, many) {
  const rough = (high - low) / Math.max(1, many);
  const step = SECONDS.find((step) => step >= rough);
  if (rough < 1) return linearTicks(low, high, many);
  return multiples(low, high, step ?? 86_400 * Math.ceil(rough / 86_400));
}

export function timeText(seconds) {
  const text = (value) => number(value, 4);
  if (seconds < 60) return `${text(seconds)} s`;
  if (seconds < 3600)
    return seconds % 60
      ? `${Math.floor(seconds / 60)}:${String(Math.round(seconds % 60)).padStart(2, "0")}`
      : `${seconds / 60} min`;
  if (seconds < 172_800)
    return seconds % 3600
      ? `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)}`
      : `${seconds / 3600} h`;
  return `${text(seconds / 86_400)} d`;
}

/** Labels with as few digits as tell the ticks apart. */
export function tickTexts(ticks) {
  for (let digits = 3; ; digits++) {
    const texts = ticks.map((tick) => number(tick, digits));
    if (digits > 9 || new Set(texts).size === texts.length) return texts;
  }
}

/** Exponential moving average that is not pulled towards zero at the start, nor over a gap. */
export function smooth(values, weight, breaks) {
  let mean = 0,
    mass = 0;
  return values.map((value, i) => {
    if (breaks.has(i)) mean = mass = 0;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

/** Index of the value of a sorted list that is nearest to a number. */
export function nearest(sorted, value) {
  let low = 0,
    high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

/**
 * Indices before which a curve is broken: values that are not finite are left out of the data, so
 * a hole in otherwise even steps is where they were. Uneven steps tell nothing and break nowhere.
 */
export function gaps(steps) {
  if (steps.length < 8) return new Set();
  const between = steps.slice(1).map((step, i) => step - steps[i]);
  const usual = [...between].sort((a, b) => a - b)[between.length >> 1];
  const odd = between.filter((width) => width > 2.5 * usual).length;
  if (odd > between.length / 10) return new Set();
  return new Set(between.flatMap((width, i) => (width > 2.5 * usual ? [i + 1] : [])));
}

/** Lowest and highest value to draw, with room around them. */
export function room(low, high, log) {
  if (log) {
    const pad = low === high ? 2 : (high / low) ** 0.05;
    return [low / pad, high * pad];
  }
  const pad = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * 0.06;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}
