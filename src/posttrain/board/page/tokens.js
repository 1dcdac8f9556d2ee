// A completion token by token: coloured by a quantity, with the numbers of each token.

import {$, el, put, setText} from "./dom.js";
import {isNumber, number} from "./format.js";
import {placeTooltip} from "./plot.js";
import {param, setParams} from "./state.js";

const SHADES = 9; // on each side of the middle

/** The quantities that a record has values of, as {key, title, values, meaning}. */
function quantities({
  ids,
  sampler_logprobs: sampler,
  old_logprobs: old,
  ref_logprobs: ref,
  values,
  returns,
  advantages,
}) {
  const policy = old ?? sampler;
  const each = (make) =>
    ids.map((_, i) => {
      const value = make(i);
      return isNumber(value) ? value : null;
    });
  const both = (a, b, make) =>
    a && b ? each((i) => (isNumber(a[i]) && isNumber(b[i]) ? make(a[i], b[i]) : null)) : null;
  const of = (list) => list && each((i) => list[i]);
  return [
    {
      key: "logp",
      title: "log-prob",
      values: of(policy),
      meaning: "log-prob of the token under the policy, in nats",
    },
    {
      key: "advantage",
      title: "advantage",
      values: of(advantages),
      meaning: "how much better than expected the completion is from here on",
    },
    {
      key: "ref",
      title: "logp − ref_logp",
      values: both(policy, ref, (a, b) => a - b),
      meaning:
        "reference KL term: positive where the policy makes the token likelier than the reference does",
    },
    {
      key: "ratio",
      title: "ratio old / sampler",
      values: both(old, sampler, (a, b) => Math.exp(a - b)),
      meaning: "probability at the trainer divided by that at the sampler; 1 if they agree",
    },
    {
      key: "value",
      title: "value",
      values: of(values),
      meaning: "what the value head expects from here on",
    },
    {
      key: "return",
      title: "return",
      values: of(returns),
      meaning: "what the value head is trained to expect",
    },
  ].filter(({values}) => values?.some((value) => value !== null));
}

/** Distance from the middle, which has no colour; a ratio is as far from 1 at 1/2 as at 2. */
const far = (key, value) => (key === "ratio" ? Math.log(value) : value);

export function tokenView(sample) {
  const {tokens} = sample;
  const list = quantities(tokens);
  const area = el("div", {
    class: "tokens",
    role: "group",
    "aria-label": "Tokens; arrow keys go from one to the next",
    dir: "auto",
  });
  const legend = el("div", {class: "scale-line small"});
  const spoken = el("p", {class: "sr", role: "status"});
  const select = el(
    "select",
    {
      "aria-label": "Colour by",
      onchange: () => {
        colour(select.value);
        setParams({by_token: select.value});
      },
    },
    list.map(({key, title}) => el("option", {value: key}, title)),
  );
  const skipped = tokens.mask?.filter((value) => !value).length ?? 0;
  const spans = tokens.ids.map((_, i) =>
    el(
      "span",
      {
        class: tokens.mask && !tokens.mask[i] ? "token untrained" : "token",
        "data-index": i,
        tabindex: i ? -1 : 0,
      },
      visible(String(tokens.texts[i] ?? "")),
    ),
  );
  put(area, spans);
  let at = 0;

  function colour(wanted) {
    const quantity = list.find(({key}) => key === wanted) ?? list[0];
    if (!quantity) {
      put(legend, marked());
      return;
    }
    const {key, title, values, meaning} = quantity;
    select.value = key;
    const reach = furthest(key, values);
    spans.forEach((span, i) => {
      const value = values[i];
      const place = value === null ? 0 : far(key, value);
      const share = reach ? Math.min(1, Math.abs(place) / reach) : 0;
      span.style.setProperty("--share", `${(Math.round(share * SHADES) / SHADES) * 100}%`);
      span.classList.toggle("below", place < 0);
      span.classList.toggle("above", place > 0);
    });
    const {low, high} = extremes(values.filter((value) => value !== null));
    const middle = key === "ratio" ? 1 : 0;
    put(
      legend,
      scaleBar(
        low < middle ? number(low, 3) : null,
        String(middle),
        high > middle ? number(high, 3) : null,
      ),
      el("span", {class: "muted"}, `${title}: ${meaning}`),
      marked(),
    );
  }

  function marked() {
    return skipped
      ? el(
          "span",
          {},
          el("span", {class: "token untrained"}, "struck out"),
          `: not trained on (${skipped} of ${tokens.ids.length} tokens)`,
        )
      : null;
  }

  function numbers(i) {
    const facts = [
      ["token", quoted(tokens.texts[i])],
      ["id", String(tokens.ids[i])],
      ["position", `${i + 1} of ${tokens.ids.length}`],
    ];
    for (const [name, title] of [
      ["sampler_logprobs", "log-prob, sampler"],
      ["old_logprobs", "log-prob, trainer"],
      ["ref_logprobs", "log-prob, reference"],
    ]) {
      if (tokens[name]) facts.push([title, number(tokens[name][i], 5)]);
    }
    for (const {key, title, values} of list)
      if (key !== "logp") facts.push([title, number(values[i], 5)]);
    if (tokens.mask) facts.push(["trained on", tokens.mask[i] ? "yes" : "no (mask 0)"]);
    return facts;
  }

  function show(i, span) {
    const tooltip = $("#tooltip");
    put(
      tooltip,
      el(
        "table",
        {class: "token-numbers"},
        el(
          "tbody",
          {},
          numbers(i).map(([name, value]) =>
            el("tr", {}, el("td", {class: "muted"}, name), el("td", {}, value)),
          ),
        ),
      ),
    );
    tooltip.hidden = false;
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    placeTooltip(box.left, box.bottom - 6);
    for (const other of area.querySelectorAll(".at")) other.classList.remove("at");
    span.classList.add("at");
  }

  const hide = () => {
    $("#tooltip").hidden = true;
  };
  area.addEventListener("pointerover", (event) => {
    const span = event.target.closest(".token");
    if (span) show(Number(span.dataset.index), span);
  });
  area.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") hide();
  });
  area.addEventListener("focusin", (event) => {
    const span = event.target.closest(".token");
    if (!span) return;
    spans[at].tabIndex = -1;
    at = Number(span.dataset.index);
    span.tabIndex = 0;
    show(at, span);
    setText(
      spoken,
      numbers(at)
        .map(([name, value]) => `${name} ${value}`)
        .join(", "),
    );
  });
  area.addEventListener("focusout", hide);
  area.addEventListener("click", (event) => event.target.closest(".token")?.focus());
  area.addEventListener("keydown", (event) => {
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: spans.length - 1}[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined || !spans[to]) return;
    event.preventDefault();
    spans[to].focus();
  });

  colour(param("by_token") || list[0]?.key);
  return el(
    "div",
    {class: "token-view"},
    el(
      "div",
      {class: "controls"},
      list.length
        ? el("label", {class: "field"}, "Colour by", select)
        : el("span", {class: "muted small"}, "No numbers were recorded for these tokens."),
      legend,
    ),
    area,
    spoken,
    el(
      "p",
      {class: "muted small"},
      "Point at a token for its numbers, or go through them with the arrow keys.",
    ),
  );
}

/** White space would be invisible, and a line break has to be seen and to break. */
const visible = (text) =>
  text === "" ? "·" : text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");

function quoted(text) {
  const whole = JSON.stringify(text ?? "");
  return whole.length > 40 ? `${whole.slice(0, 40)}…` : whole;
}

function extremes(values) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return {low, high};
}

/**
 * What has the strongest colour: the 98th percentile, so that one outlier does not pale the rest.
 */
function furthest(key, values) {
  const sizes = values
    .filter((value) => value !== null)
    .map((value) => Math.abs(far(key, value)))
    .sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 0;
}

function scaleBar(low, middle, high) {
  return el(
    "span",
    {class: "scale-bar"},
    low === null ? null : [el("span", {}, low), el("i", {class: "below", "aria-hidden": "true"})],
    el("span", {}, middle),
    high === null ? null : [el("i", {class: "above", "aria-hidden": "true"}), el("span", {}, high)],
  );
}
