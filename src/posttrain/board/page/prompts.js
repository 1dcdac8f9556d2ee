// The prompts of a run: search, and how the reward of each went over the steps.

import {get} from "./api.js";
import {el, empty, inPortions, later, put, setText, svg} from "./dom.js";
import {count, number} from "./format.js";
import {param, setParams} from "./state.js";

const ORDERS = [
  ["", "seen most often"],
  ["last", "lowest last reward"],
  ["-last", "highest last reward"],
  ["change", "fell most"],
  ["-change", "rose most"],
];

export function show(host, first) {
  let context = first,
    answer = null,
    read = null,
    turn = 0,
    closed = false;
  const search = el("input", {
    type: "search",
    id: "prompt-search",
    class: "wide",
    placeholder: "Find a prompt",
    "aria-label": "Find a prompt",
    value: param("q"),
    oninput: later(() => setParams({q: search.value.trim()}), 250),
  });
  const order = el(
    "select",
    {"aria-label": "Order", onchange: () => setParams({sort: order.value})},
    ORDERS.map(([value, text]) => el("option", {value}, text)),
  );
  const note = el("p", {class: "small muted", role: "status"});
  const list = el("div", {class: "card"});
  put(
    host,
    el("div", {class: "controls"}, search, el("label", {class: "field"}, "Order", order)),
    note,
    list,
  );
  load();

  async function load() {
    const wanted = JSON.stringify([context.run.id, context.run.step, context.kind, param("q")]);
    if (wanted === read) return;
    read = wanted;
    const number = ++turn;
    try {
      const next = await get("/api/samples/prompts", [
        ["run", context.run.id],
        ["kind", context.kind],
        ["q", param("q")],
      ]);
      if (closed || number !== turn) return;
      answer = next;
      draw();
    } catch (error) {
      if (!closed && !error.gone) put(list, empty("The prompts cannot be read", error.message));
      read = null;
    }
  }

  function draw() {
    if (!answer) return;
    order.value = param("sort");
    setText(
      note,
      `${count(answer.prompts.length + answer.more, "prompt")}${answer.more ? `, of which the first ${answer.prompts.length} are shown: search for others` : ""}`,
    );
    if (!answer.prompts.length) {
      put(list, empty("No prompt has this text in it"));
      return;
    }
    inPortions(list, inOrder(answer.prompts), row, 80);
  }

  function row({prompt_key: key, prompt, steps, rewards}) {
    const known = rewards.filter((reward) => reward !== null);
    const last = known.at(-1);
    return el(
      "div",
      {class: "prompt-row"},
      el(
        "button",
        {type: "button", class: "prompt-open", onclick: () => setParams({prompt: key})},
        el("span", {class: "text one-line", dir: "auto"}, prompt),
      ),
      sparkline(steps, rewards),
      el(
        "span",
        {class: "small"},
        el("span", {class: "muted"}, "reward "),
        known.length > 1 ? `${number(known[0], 3)} → ` : "",
        el("b", {}, number(last, 3)),
      ),
      el("span", {class: "small muted"}, count(steps.length, "step")),
    );
  }

  return {
    update(next, reasons) {
      context = next;
      if (document.activeElement !== search) search.value = param("q");
      load();
      if (reasons.includes("sort")) draw();
    },
    close() {
      closed = true;
    },
  };
}

function inOrder(prompts) {
  const wanted = param("sort");
  if (!wanted) return prompts;
  const sign = wanted.startsWith("-") ? -1 : 1;
  const of = {
    last: (known) => known.at(-1) ?? null,
    change: (known) => (known.length > 1 ? known.at(-1) - known[0] : null),
  }[wanted.replace("-", "")];
  if (!of) return prompts;
  const keyed = prompts.map((prompt) => [
    of(prompt.rewards.filter((reward) => reward !== null)),
    prompt,
  ]);
  return keyed
    .sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * (a - b)))
    .map(([, prompt]) => prompt);
}

/** The mean rewards over the steps as a line, without axes: only whether it rises or falls. */
function sparkline(steps, rewards) {
  const width = 110,
    height = 24;
  const points = steps.map((step, i) => [step, rewards[i]]).filter(([, reward]) => reward !== null);
  const image = svg("svg", {
    class: "spark",
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    "aria-hidden": "true",
  });
  if (!points.length) return image;
  const values = points.map(([, reward]) => reward);
  const [low, high] = [Math.min(0, ...values), Math.max(1, ...values)];
  const x = (step) =>
    points.length === 1
      ? width / 2
      : 4 + ((step - points[0][0]) / (points.at(-1)[0] - points[0][0])) * (width - 8);
  const y = (reward) => height - 4 - ((reward - low) / (high - low)) * (height - 8);
  const places = points.map(([step, reward]) => `${x(step).toFixed(1)},${y(reward).toFixed(1)}`);
  image.append(
    svg("polyline", {points: places.join(" ")}),
    svg("circle", {cx: x(points.at(-1)[0]), cy: y(values.at(-1)), r: 2.5}),
  );
  return image;
}
