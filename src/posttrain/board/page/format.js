// Numbers, sizes and times as words.

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** A number in about `digits` digits; "–" if it is none. */
export function number(value, digits = 4) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e15) {
    const [mantissa, exponent] = value.toExponential(Math.max(0, digits - 2)).split("e");
    return `${trim(mantissa)}e${exponent.replace("+", "")}`;
  }
  if (Number.isInteger(value) && size < 1e5) return String(value);
  for (const [unit, letter, divisor] of [
    [1e12, "T", 1e12],
    [1e9, "B", 1e9],
    [1e6, "M", 1e6],
    [1e5, "k", 1e3],
  ]) {
    if (size >= unit) return trim((value / divisor).toPrecision(digits)) + letter;
  }
  return trim(value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
}

export const whole = (value) => (isNumber(value) ? value.toLocaleString("en") : "–");
export const percent = (value, digits = 1) =>
  isNumber(value) ? `${(100 * value).toFixed(digits)} %` : "–";
export const signed = (value, text) =>
  (value > 0 ? "+" : value < 0 ? "−" : "") + text(Math.abs(value));

export function bytes(value) {
  if (!isNumber(value)) return "–";
  for (const [unit, name] of [
    [1e12, "TB"],
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
  ]) {
    if (value >= unit) return `${(value / unit).toPrecision(3).replace(/e\+3$/, "")} ${name}`;
  }
  return `${value} bytes`;
}

export function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 ? number(seconds, 2) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(seconds) {
  if (!isNumber(seconds)) return "–";
  const passed = Date.now() / 1000 - seconds;
  if (passed < 5) return "now";
  return passed < 86_400 * 2 ? `${duration(passed)} ago` : date(seconds).slice(0, 10);
}

/** Local time, as 2026-11-30 08:30. */
export function date(seconds) {
  if (!isNumber(seconds)) return "–";
  const time = new Date(1000 * seconds);
  const two = (value) => String(value).padStart(2, "0");
  return (
    `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}` +
    ` ${two(time.getHours())}:${two(time.getMinutes())}`
  );
}

export const pValue = (p) =>
  !isNumber(p) ? "–" : p < 0.001 ? p.toExponential(0).replace("e-", "e−") : p.toFixed(3);

/** A value of a record as text: prompts may be lists of messages. */
export const plain = (value) =>
  value === null || value === undefined
    ? ""
    : typeof value === "object"
      ? JSON.stringify(value)
      : String(value);

export const count = (value, one, many = `${one}s`) =>
  `${whole(value)} ${value === 1 ? one : many}`;

/** A model without the folders above it; a checkpoint keeps the run that it is of. */
export function shortModel(name) {
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  const keep = parts.at(-1)?.startsWith("checkpoint-") ? 2 : 1;
  return parts.slice(-keep).join("/") || name;
}
