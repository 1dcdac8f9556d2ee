// A chart on a canvas: curves over a common x axis, with read-out and zoom by pointer and keys.

import {$, el, put} from "./dom.js";
import {number, whole} from "./format.js";
import {drawCurves, layOut} from "./paint.js";
import {nearest, timeText} from "./scale.js";
import {colourOf, swatch} from "./swatch.js";

const MAX_READ = 16; // runs in the read-out beside the pointer

const charts = new Set();
let reading = null; // the chart whose values the tooltip shows
// A canvas keeps the colours that it was drawn in.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) chart.paint();
});

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
  let input = null,
    width = 0,
    frame = null,
    drag = null;
  let at = -1,
    atX = 0,
    pointer = null; // the place that is read out, by index and by x

  const chart = {
    canvas,
    draw(next) {
      input = next;
      paint();
    },
    resize(next) {
      height = next;
      paint();
    },
    paint,
    close() {
      observer.disconnect();
      charts.delete(chart);
      if (at >= 0) leave();
    },
  };
  const observer = new ResizeObserver(() => {
    const now = Math.floor(host.clientWidth);
    if (now !== width) {
      width = now;
      paint();
    }
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
    canvas.setAttribute(
      "aria-label",
      frame
        ? `${input.label}: ${frame.curves
            .map(({name, ys}) => `${name}, last ${number(ys.at(-1))}`)
            .slice(0, 6)
            .join("; ")}. Arrow keys read out values${onzoom ? ", plus and minus zoom" : ""}.`
        : `${input.label}: nothing to draw`,
    );
    if (frame) drawCurves(pen, frame, input);
    else {
      pen.fillStyle = colourOf("--muted");
      pen.font = "12.5px system-ui, sans-serif";
      pen.fillText(input.note ?? "Nothing to draw", 4, 30);
    }
    if (at >= 0 && !frame) leave();
    else if (at >= 0 && !drag) go(nearest(frame.places, atX), ...(pointer ?? [])); // new points have come
  }

  // Read-out

  function mark() {
    const pen = sized(cover);
    if (!frame) return null;
    if (drag && Math.abs(drag.to - drag.from) > 3) {
      pen.fillStyle = colourOf("--accent");
      pen.globalAlpha = 0.16;
      pen.fillRect(
        Math.min(drag.from, drag.to),
        frame.top,
        Math.abs(drag.to - drag.from),
        frame.bottom - frame.top,
      );
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
    return input.axis === "time"
      ? timeText(Math.round(x))
      : input.axis === "tokens"
        ? `${number(x, 5)} tokens`
        : `step ${whole(x)}`;
  }

  function readOut({x, rows}, clientX, clientY) {
    const kept = rows.slice(0, MAX_READ);
    const smoothed = kept.some(({curve}) => curve.line),
      spread = kept.some(({curve}) => curve.low);
    const head = (shown, text, kind) =>
      shown ? el("th", {scope: "col", class: kind}, text) : null;
    const cell = (shown, text, kind = "") =>
      shown ? el("td", {class: `muted ${kind}`}, text) : null;
    const tooltip = $("#tooltip");
    put(
      tooltip,
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", {scope: "col"}, xText(x)),
            head(true, "value"),
            head(smoothed, "smoothed"),
            head(spread, "lowest to highest", "spread"),
          ),
        ),
        el(
          "tbody",
          {},
          kept.map(({curve, i, value}) =>
            el(
              "tr",
              {},
              el(
                "td",
                {},
                swatch(curve.colour, curve.dash),
                el("span", {class: "read-name"}, curve.name),
                curve.xs[i] === x
                  ? null
                  : el("span", {class: "muted"}, ` at ${xText(curve.xs[i])}`),
              ),
              el("td", {}, el("strong", {}, number(value, 5))),
              cell(smoothed, curve.line ? number(curve.line[i]) : ""),
              cell(
                spread,
                curve.low ? `${number(curve.low[i], 3)} to ${number(curve.high[i], 3)}` : "",
                "spread",
              ),
            ),
          ),
        ),
      ),
      rows.length > kept.length
        ? el("div", {class: "muted"}, `and ${rows.length - kept.length} more below`)
        : null,
    );
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
      if (Math.abs(drag.to - drag.from) > 3) {
        $("#tooltip").hidden = true;
        mark();
        return;
      }
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
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") leave();
  });
  canvas.addEventListener("pointercancel", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("dblclick", () => onzoom?.(null));
  canvas.addEventListener("keydown", (event) => {
    if (!frame || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = frame.places.length - 1;
    const jump = event.shiftKey ? Math.max(1, Math.round(last / 10)) : 1;
    const to = {ArrowLeft: at < 0 ? last : at - jump, ArrowRight: at + jump, Home: 0, End: last}[
      event.key
    ];
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
  const left =
    clientX + 14 + width > window.clientWidth - 8
      ? Math.max(8, clientX - 14 - width)
      : clientX + 14;
  const up = Math.max(8, Math.min(clientY + 14, window.clientHeight - height - 8));
  tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(up)}px)`;
}
