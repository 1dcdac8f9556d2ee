// One completion: its text, its numbers, and on request its tokens.

import {get} from "./api.js";
import {button, clipped, el, put} from "./dom.js";
import {isNumber, number, plain} from "./format.js";
import {param, setParams} from "./state.js";
import {tokenView} from "./tokens.js";

const KNOWN = new Set([
  "key",
  "prompt_key",
  "prompt",
  "completion",
  "reward",
  "verdict",
  "rewards",
  "finish_reason",
  "answer",
  "advantage",
  "trained",
  "has_tokens",
  "num_tokens",
  "step",
  "kind",
  "run",
  "tokens",
]);

export const verdictOf = (sample) => plain(sample.verdict);

/** Place of a reward on the scale, in percent of the way from the lowest to the highest. */
function rewardColour(reward, [low, high]) {
  if (!isNumber(reward)) return "var(--line)";
  const share = Math.max(0, Math.min(1, (reward - low) / (high - low)));
  return share < 0.5
    ? `color-mix(in oklab, var(--mid) ${200 * share}%, var(--low))`
    : `color-mix(in oklab, var(--high) ${200 * share - 100}%, var(--mid))`;
}

/** A completion of a run with its numbers. */
export function completion(sample, runId, scale) {
  const text = el("div", {class: "completion-text"});
  const tokens = el("div", {class: "token-area"});
  const toggle = button(
    "Tokens",
    () => {
      const open = toggle.getAttribute("aria-expanded") !== "true";
      // With the step, so that the view stays at it while the run goes on.
      setParams({key: open ? sample.key : null, step: sample.step});
      flip(open);
    },
    {class: sample.has_tokens ? "link" : "link none", "aria-expanded": "false"},
  );
  const plainText = () =>
    put(
      text,
      plain(sample.completion)
        ? clipped(plain(sample.completion), "", 8)
        : el("p", {class: "muted small"}, sample.completion === "" ? "(empty)" : ""),
    );
  plainText();
  if (Array.isArray(sample.choices)) put(text, choices(sample));

  async function flip(open) {
    toggle.setAttribute("aria-expanded", String(open));
    toggle.textContent = open ? "Close tokens" : "Tokens";
    if (!open) {
      put(tokens);
      plainText();
      return;
    }
    try {
      const full = await get("/api/samples/one", [
        ["run", runId],
        ["key", sample.key],
      ]);
      if (toggle.getAttribute("aria-expanded") !== "true") return;
      const recorded = Array.isArray(full.tokens?.ids) && Array.isArray(full.tokens.texts);
      if (recorded) put(text);
      put(tokens, recorded ? tokenView(full) : el("p", {class: "muted small"}, NO_TOKENS));
    } catch (error) {
      put(tokens, el("p", {class: "note"}, error.message));
    }
  }
  if (sample.key !== undefined && param("key") === sample.key) flip(true);

  const rest = Object.entries(sample).filter(
    ([name, value]) =>
      !KNOWN.has(name) && value !== null && !["choices", "logprobs", "chosen"].includes(name),
  );
  return el(
    "div",
    {
      class: "sample",
      "data-key": sample.key,
      style: {"--reward": rewardColour(sample.reward, scale)},
    },
    el(
      "div",
      {class: "facts small"},
      el("span", {class: "reward"}, isNumber(sample.reward) ? number(sample.reward) : "no reward"),
      verdictOf(sample)
        ? el(
            "span",
            {
              class: `verdict ${["correct", "wrong"].includes(sample.verdict) ? sample.verdict : ""}`,
            },
            verdictOf(sample),
          )
        : null,
      parts(sample.rewards),
      isNumber(sample.advantage)
        ? el("span", {}, el("span", {class: "muted"}, "advantage "), signedNumber(sample.advantage))
        : null,
      sample.finish_reason
        ? el(
            "span",
            {class: sample.finish_reason === "length" ? "cut-off" : "muted"},
            sample.finish_reason === "length" ? "cut off (length)" : String(sample.finish_reason),
          )
        : null,
      isNumber(sample.num_tokens)
        ? el("span", {class: "muted"}, `${sample.num_tokens} tokens`)
        : null,
      sample.trained === false ? el("span", {class: "cut-off"}, "not trained on") : null,
      rest.map(([name, value]) =>
        el(
          "span",
          {class: "rest"},
          el("span", {class: "muted"}, `${name} `),
          isNumber(value) ? number(value) : plain(value),
        ),
      ),
      sample.key !== undefined && sample.completion !== undefined ? toggle : null,
    ),
    text,
    tokens,
  );
}

const NO_TOKENS =
  "The tokens of this completion were not recorded: raise rollout.record_prompts, the number of prompts of each step whose completions are recorded token by token.";

const parts = (rewards) =>
  rewards && typeof rewards === "object"
    ? Object.entries(rewards).map(([name, value]) =>
        el("span", {class: "part"}, el("span", {class: "muted"}, `${name} `), number(value)),
      )
    : null;

const signedNumber = (value) =>
  `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(value), 3)}`;

/** Records of tasks have choices with log-probs instead of one completion. */
function choices({choices, logprobs, chosen}) {
  return el(
    "ol",
    {class: "choices"},
    choices.map((text, i) =>
      el(
        "li",
        {class: i === chosen ? "chosen" : null},
        el(
          "span",
          {class: "muted small"},
          isNumber(logprobs?.[i]) ? `${number(logprobs[i])} ` : "",
        ),
        el("span", {class: "text", dir: "auto"}, String(text)),
      ),
    ),
  );
}
