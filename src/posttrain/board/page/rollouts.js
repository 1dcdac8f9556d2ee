// Rollouts: the samples of a step, the list of prompts, and one prompt across steps and runs.

import {button, el, empty, put, setText} from "./dom.js";
import {get} from "./api.js";
import {count, percent} from "./format.js";
import * as prompts from "./prompts.js";
import * as oneprompt from "./oneprompt.js";
import * as steps from "./steps.js";
import {
  allRuns,
  assignSlots,
  board,
  namesOf,
  newestFirst,
  param,
  selected,
  setParams,
  shownRuns,
} from "./state.js";

const PARTS = {step: steps, prompts, prompt: oneprompt};
const AGAIN = 2000;

export function show(host) {
  const bar = el("div", {class: "controls"}),
    status = el("p", {class: "small muted", role: "status", hidden: true});
  const area = el("div", {class: "view"});
  put(host, bar, status, area);
  let part = null,
    partName = null,
    kinds = null,
    kindsOf = null,
    asked = 0,
    timer = 0,
    closed = false;
  update([]);

  /** The run that is looked at: that of the address, else the first selected one with samples. */
  function chosen() {
    const named = board.runs.get(param("of"));
    if (named) return named;
    const having = (run) => run.has.samples;
    return shownRuns(having).find(having) ?? newestFirst(allRuns().filter(having))[0] ?? null;
  }

  async function update(reasons) {
    const run = chosen();
    const mark = run && `${run.id} ${run.updated} ${run.step}`;
    assignSlots(shownRuns());
    if (!run) return nothing();
    if (mark !== kindsOf) {
      kindsOf = mark;
      const number = ++asked;
      try {
        const answer = await get("/api/samples", [["run", run.id]]);
        if (closed || number !== asked) return null;
        kinds = answer.kinds;
        const other = selected().length > 0 && !param("of") && !selected().includes(run.id);
        setText(
          status,
          answer.progress < 1
            ? `Reading the samples of ${run.name} (${percent(answer.progress, 0)}): the list of steps is not complete yet.`
            : other
              ? "None of the selected runs has recorded samples; this is the newest run that has."
              : "",
        );
        status.hidden = status.textContent === "";
        clearTimeout(timer);
        if (answer.progress < 1)
          timer = setTimeout(() => {
            kindsOf = null;
            update(["runs"]);
          }, AGAIN);
      } catch (error) {
        if (closed) return null;
        kindsOf = null;
        if (!error.gone) {
          put(area, empty("The samples cannot be read", error.message));
          part = null;
          partName = null;
        }
        return null;
      }
      reasons = [...reasons, "runs"];
    }
    if (!kinds) return null;
    const names = Object.keys(kinds).filter((kind) => kinds[kind].length);
    if (!names.length) {
      drawBar(run, names, null);
      put(
        area,
        empty(
          "This run has recorded no samples",
          run.state === "running" ? "They appear with the first step that is sampled." : "",
        ),
      );
      part?.close?.();
      [part, partName] = [null, null];
      return null;
    }
    const kind = names.includes(param("kind"))
      ? param("kind")
      : names.includes("rollout")
        ? "rollout"
        : names[0];
    drawBar(run, names, kind);
    const view = param("prompt") ? "prompt" : param("by") === "prompts" ? "prompts" : "step";
    const context = {run, kind, steps: kinds[kind], runs: comparedRuns(run)};
    if (partName !== view) {
      part?.close?.();
      const inner = el("div", {class: "view"});
      put(area, inner);
      partName = view;
      part = PARTS[view].show(inner, context);
    } else part.update(context, reasons);
    return null;
  }

  /** The runs that a prompt is compared across: the selected ones with samples, this one first. */
  function comparedRuns(run) {
    const others = selected()
      .map((id) => board.runs.get(id))
      .filter((other) => other?.has.samples && other.id !== run.id);
    return [run, ...others];
  }

  function nothing() {
    put(bar);
    part?.close?.();
    [part, partName] = [null, null];
    put(
      area,
      empty(
        "No samples",
        "None of the runs has recorded samples. Runs of grpo and other methods that sample completions do, and so do evaluations during training.",
      ),
    );
    return null;
  }

  let barKey = "";
  function drawBar(run, names, kind) {
    const having = newestFirst(allRuns().filter((other) => other.has.samples));
    const first = new Set(selected());
    having.sort((a, b) => first.has(b.id) - first.has(a.id));
    const list = having.slice(0, 300);
    if (!list.includes(run)) list.unshift(run);
    const view = param("prompt") ? "prompt" : param("by", "step");
    const key = JSON.stringify([run.id, names, kind, view, list.map(({id}) => id)]);
    if (key === barKey) return; // an open list would close
    barKey = key;
    const short = namesOf(list);
    const runSelect = el(
      "select",
      {
        id: "of",
        "aria-label": "Run",
        class: "wide",
        onchange: (event) =>
          setParams({of: event.target.value, step: null, key: null, prompt: null}),
      },
      list.map(({id}) =>
        el(
          "option",
          {value: id, selected: id === run.id},
          `${first.has(id) ? "● " : ""}${short.get(id)}`,
        ),
      ),
    );
    const tab = (name, text) =>
      button(text, () => setParams({by: name, prompt: null, key: null}), {
        "aria-pressed": String(view === name),
      });
    put(
      bar,
      el("label", {class: "field grow"}, el("span", {}, "Run"), runSelect),
      names.length > 1
        ? el(
            "label",
            {class: "field kind"},
            el("span", {}, "Kind"),
            el(
              "select",
              {
                id: "kind",
                "aria-label": "Kind",
                onchange: (event) => setParams({kind: event.target.value, step: null, key: null}),
              },
              names.map((name) =>
                el(
                  "option",
                  {value: name, selected: name === kind},
                  `${name} (${count(kinds[name].length, "step")})`,
                ),
              ),
            ),
          )
        : null,
      el(
        "span",
        {class: "segments", role: "group", "aria-label": "Show"},
        tab("step", "By step"),
        tab("prompts", "By prompt"),
      ),
    );
  }

  return {
    update,
    close() {
      closed = true;
      clearTimeout(timer);
      part?.close?.();
    },
  };
}
