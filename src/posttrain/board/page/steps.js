// The samples of one step: prompts with their completions, filtered and sorted.

import {get} from "./api.js";
import {announce, button, clipped, el, empty, inPortions, later, put, setText} from "./dom.js";
import {count, isNumber, number, plain} from "./format.js";
import {nearest} from "./scale.js";
import {completion, verdictOf} from "./sample.js";
import {param, setParams} from "./state.js";

const SORTS = [
  ["", "as sampled"],
  ["reward", "lowest reward"],
  ["-reward", "highest reward"],
  ["advantage", "lowest advantage"],
  ["-advantage", "highest advantage"],
  ["-length", "longest"],
  ["length", "shortest"],
];
const FILTERS = ["text", "verdict", "finish", "min", "max", "sort"];

export function show(host, first) {
  let context = first,
    samples = null,
    leftOut = 0,
    drawn = false,
    shownStep = null,
    number_ = 0,
    closed = false;

  const slider = el("input", {
    type: "range",
    id: "step",
    class: "long",
    min: 0,
    step: 1,
    "aria-label": "Step",
    oninput: later(() => go(Number(slider.value)), 40),
  });
  slider.addEventListener("input", () => label(Number(slider.value)));
  const output = el("output", {});
  const back = button("‹", () => go(position() - 1), {
    "aria-label": "Step before",
    id: "step-back",
  });
  const on = button("›", () => go(position() + 1), {"aria-label": "Step after", id: "step-on"});
  const text = el("input", {
    type: "search",
    placeholder: "Text",
    "aria-label": "Text in prompt or completion",
    oninput: later(() => setParams({text: text.value}), 100),
  });
  const low = bound("min", "Lowest reward"),
    high = bound("max", "Highest reward");
  const verdict = el("select", {
    "aria-label": "Verdict",
    onchange: () => setParams({verdict: verdict.value}),
  });
  const finish = el("select", {
    "aria-label": "Finish reason",
    onchange: () => setParams({finish: finish.value}),
  });
  const sort = el(
    "select",
    {"aria-label": "Order", onchange: () => setParams({sort: sort.value})},
    SORTS.map(([value, name]) => el("option", {value}, name)),
  );
  const found = el("p", {class: "small muted", role: "status"});
  const list = el("div", {class: "samples"});
  put(
    host,
    el(
      "div",
      {class: "controls"},
      el("span", {class: "field stepper"}, "Step", back, slider, on, output),
    ),
    // On a phone the fields would fill the screen: they are folded unless one of them is set.
    el(
      "details",
      {
        class: "filters",
        open: matchMedia("(min-width: 721px)").matches || FILTERS.some((name) => param(name)),
      },
      el("summary", {}, "Filter and order"),
      el(
        "div",
        {class: "controls"},
        text,
        el("span", {class: "field rewards"}, "Reward", low, "–", high),
        verdict,
        finish,
        el("label", {class: "field"}, "Order", sort),
      ),
    ),
    found,
    list,
  );
  fill();
  load();

  function bound(name, label) {
    return el("input", {
      type: "number",
      step: "any",
      class: "short",
      "aria-label": label,
      oninput: later((event) => setParams({[name]: event.target.value}), 150),
    });
  }

  function position() {
    const wanted = param("step");
    return wanted === "" ? context.steps.length - 1 : nearest(context.steps, Number(wanted));
  }

  function label(index) {
    setText(output, `${context.steps[index] ?? "–"} of ${context.steps.at(-1)}`);
  }

  function go(index) {
    const bounded = Math.max(0, Math.min(context.steps.length - 1, index));
    setParams({step: context.steps[bounded], key: null});
  }

  /** Bring the fields in line with the address. */
  function fill() {
    slider.max = context.steps.length - 1;
    if (document.activeElement !== slider || param("step") === "") slider.value = position();
    label(position());
    back.disabled = position() <= 0;
    on.disabled = position() >= context.steps.length - 1;
    for (const [field, name] of [
      [text, "text"],
      [low, "min"],
      [high, "max"],
    ])
      if (document.activeElement !== field) field.value = param(name);
    sort.value = param("sort");
  }

  async function load() {
    const step = context.steps[position()];
    const wanted = JSON.stringify([context.run.id, context.kind, step]);
    if (wanted === shownStep) return;
    const turn = ++number_;
    try {
      const answer = await get("/api/samples/step", [
        ["run", context.run.id],
        ["kind", context.kind],
        ["step", step],
      ]);
      if (closed || turn !== number_) return;
      samples = answer.samples;
      leftOut = answer.left_out ?? 0;
      shownStep = wanted;
      options();
      draw();
      announce(`Step ${step}: ${count(samples.length, "sample")}`);
    } catch (error) {
      if (closed || turn !== number_ || error.gone) return;
      put(list, empty("The samples of this step cannot be read", error.message));
    }
  }

  /** The verdicts and finish reasons of the step, and what the address asks for. */
  function options() {
    const fill = (select, every, name, values) => {
      const wanted = param(name);
      const all = [...new Set([...values, ...(wanted ? [wanted] : [])])].sort();
      put(
        select,
        el("option", {value: ""}, every),
        all.map((value) => el("option", {value}, value)),
      );
      select.value = wanted;
      select.disabled = !all.length;
    };
    fill(verdict, "any verdict", "verdict", samples.map(verdictOf).filter(Boolean));
    fill(
      finish,
      "any finish",
      "finish",
      samples.map((sample) => sample.finish_reason).filter(Boolean),
    );
  }

  function meets(sample) {
    const [least, most] = [param("min"), param("max")];
    const words = param("text").toLowerCase();
    return (
      (!least || (isNumber(sample.reward) && sample.reward >= Number(least))) &&
      (!most || (isNumber(sample.reward) && sample.reward <= Number(most))) &&
      (!param("verdict") || verdictOf(sample) === param("verdict")) &&
      (!param("finish") || sample.finish_reason === param("finish")) &&
      (!words ||
        `${plain(sample.prompt)}\n${plain(sample.completion)}`.toLowerCase().includes(words))
    );
  }

  function draw() {
    if (!samples) return;
    const kept = samples.filter(meets);
    const order = param("sort");
    const rewards = kept.map(({reward}) => reward).filter(isNumber);
    const mean = rewards.length
      ? `, mean reward ${number(rewards.reduce((a, b) => a + b, 0) / rewards.length)}`
      : "";
    setText(
      found,
      `${kept.length < samples.length ? `${kept.length} of ` : ""}${count(samples.length, "sample")}${mean}${leftOut ? `; ${count(leftOut, "more is", "more are")} not shown` : ""}`,
    );
    if (!kept.length) {
      put(
        list,
        samples.length
          ? empty(
              "No sample of this step meets the filter",
              button("Clear the filter", () =>
                setParams(Object.fromEntries(FILTERS.map((name) => [name, null]))),
              ),
            )
          : empty("This step has no samples"),
      );
      return;
    }
    const scale = rewardScale(samples);
    const groups = order ? sortedFlat(kept, order).map((sample) => [sample]) : byPrompt(kept);
    const linked = groups.findIndex((group) => group.some(({key}) => key === param("key")));
    inPortions(list, groups, (group) => card(group, scale), Math.max(12, linked + 1));
    if (!drawn && linked >= 0)
      list
        .querySelector(`[data-key="${CSS.escape(param("key"))}"]`)
        .scrollIntoView({block: "center"});
    drawn = true;
  }

  function card(group, scale) {
    const [{prompt, prompt_key: key, answer}] = group;
    const rewards = group.map(({reward}) => reward).filter(isNumber);
    const same = samples.filter((sample) => sample.prompt_key === key).length;
    return el(
      "article",
      {class: "card prompt-card"},
      el(
        "div",
        {class: "prompt-head"},
        clipped(plain(prompt), "prompt", 3),
        el(
          "div",
          {class: "facts small"},
          group.length > 1 && rewards.length
            ? el(
                "span",
                {},
                "mean reward ",
                el("b", {}, number(rewards.reduce((a, b) => a + b, 0) / rewards.length)),
              )
            : null,
          plain(answer) === ""
            ? null
            : el("span", {}, "answer ", el("b", {dir: "auto"}, plain(answer))),
          key
            ? button("Across steps and runs", () => setParams({prompt: key, key: null}), {
                class: "link",
              })
            : null,
          group.length < same && !param("sort")
            ? el("span", {class: "muted"}, `${group.length} of ${same} completions`)
            : null,
        ),
      ),
      group.map((sample) => completion(sample, context.run.id, scale)),
    );
  }

  function update(next, reasons) {
    const before = context;
    context = next;
    fill();
    // The last step is followed while a run goes on; a step that was chosen stays.
    if (
      before.run.id !== next.run.id ||
      before.kind !== next.kind ||
      reasons.includes("step") ||
      reasons.includes("runs") ||
      reasons.includes("address")
    )
      load();
    if (samples && reasons.some((name) => FILTERS.includes(name))) {
      options();
      draw();
    }
  }

  /** Arrow keys go through the steps while no field and no list has the focus. */
  function keys(event) {
    if (
      ![document.body, document.getElementById("main")].includes(event.target) ||
      event.altKey ||
      event.ctrlKey ||
      event.metaKey
    )
      return;
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (by) go(position() + by);
  }
  document.addEventListener("keydown", keys);

  return {
    update,
    close() {
      closed = true;
      document.removeEventListener("keydown", keys);
    },
  };
}

/** The rewards of samples from the lowest to the highest, at least from 0 to 1 if they are inside. */
export function rewardScale(samples) {
  let low = Infinity,
    high = -Infinity;
  for (const {reward} of samples)
    if (isNumber(reward)) [low, high] = [Math.min(low, reward), Math.max(high, reward)];
  if (low >= 0 && high <= 1) return [0, 1];
  return low < high ? [low, high] : [low - 1, low + 1];
}

function byPrompt(samples) {
  const groups = new Map();
  for (const sample of samples) {
    const key = sample.prompt_key ?? sample.prompt;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(sample);
  }
  return [...groups.values()];
}

/** Samples by a quantity, whatever their prompts; those without it come last. */
function sortedFlat(samples, order) {
  const [sign, name] = order.startsWith("-") ? [-1, order.slice(1)] : [1, order];
  const of = (sample) =>
    name === "length" ? (sample.num_tokens ?? plain(sample.completion).length) : sample[name];
  return [...samples].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (!isNumber(x) || !isNumber(y)) return isNumber(y) - isNumber(x);
    return sign * (x - y);
  });
}
