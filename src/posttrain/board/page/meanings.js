// What metrics mean, which come first, and how they are grouped.

const MAIN = [
  "reward",
  "eval_accuracy",
  "eval_reward",
  "loss",
  "eval_loss",
  "rewards/margins",
  "rewards/accuracies",
  "accuracy",
  "mean_token_accuracy",
  "eval_mean_token_accuracy",
  "entropy",
  "kl",
  "completions/mean_length",
  "grad_norm",
  "learning_rate",
];

const MEANINGS = new Map(
  Object.entries({
    loss: "training objective, averaged over the step",
    accuracy: "share answered correctly",
    reward: "mean reward of the completions in the step",
    reward_std: "standard deviation of the rewards in the step",
    frac_reward_zero_std: "share of prompts whose completions all get the same reward (no signal)",
    frac_reward_none: "share of completions that the reward gave no score",
    mean_token_accuracy: "share of tokens where the likeliest prediction is the target",
    entropy: "mean entropy of the next-token distribution, in nats",
    kl: "divergence from the reference policy, in nats (per token; for kto per completion)",
    grad_norm: "norm of the gradient before clipping",
    learning_rate: "learning rate of the optimiser",
    num_tokens: "tokens seen since the start",
    tokens_per_second: "throughput, in tokens per second",
    step_time: "seconds per training step",
    "memory/resident": "GiB of the CPU's memory that the process of rank 0 takes",
    "memory/peak": "most GiB of the GPU of rank 0 that tensors took in the step",
    "memory/reserved": "most GiB of the GPU of rank 0 that torch has reserved",
    epoch: "passes over the training data",
    "clip_ratio/low_mean": "share of tokens held back by the lower clipping bound",
    "clip_ratio/high_mean": "share of tokens held back by the upper clipping bound",
    "clip_ratio/region_mean": "share of tokens held back by either clipping bound",
    "completions/mean_length": "mean completion length, in tokens",
    "completions/min_length": "shortest completion, in tokens",
    "completions/max_length": "longest completion, in tokens",
    "completions/clipped_ratio": "share of completions cut off at the length limit",
    "completions/mean_terminated_length":
      "mean length of completions that ended on their own, in tokens",
    "sampling/sampling_logp_difference/mean":
      "mean gap between sampler and trainer log-prob of a token, in nats",
    "sampling/sampling_logp_difference/max":
      "largest gap between sampler and trainer log-prob, in nats",
    "sampling/importance_sampling_ratio/mean": "mean ratio of trainer to sampler probability",
    "rewards/chosen": "mean reward of the chosen completions",
    "rewards/rejected": "mean reward of the rejected completions",
    "rewards/margins": "mean reward of chosen minus rejected completions",
    "rewards/accuracies": "share of pairs in which the chosen completion has the higher reward",
    "logps/chosen": "log-prob of the chosen completions, in nats",
    "logps/rejected": "log-prob of the rejected completions, in nats",
  }),
);

export function meaningOf(metric) {
  if (!metric.startsWith("eval_")) return MEANINGS.get(metric);
  const meaning = MEANINGS.get(metric.slice(5));
  return meaning && `held-out data: ${meaning.replace(", averaged over the step", "")}`;
}

/** Lists of metrics by group, [title, names]; the first, without a title, is what matters most. */
export function groupsOf(metrics) {
  const groups = new Map([
    ["", MAIN.filter((name) => metrics.includes(name))],
    ["training", []],
    ["evaluation", []],
  ]);
  // Metrics of single labels have a view of their own, and would bury the others.
  const prefixOf = (name) =>
    /^eval_(precision|recall|f1|confusion)\//.test(name)
      ? "evaluation by label"
      : name.startsWith("eval_")
        ? "evaluation"
        : name.includes("/")
          ? name.split("/")[0]
          : "training";
  for (const name of metrics.filter((name) => !MAIN.includes(name)).sort()) {
    const prefix = prefixOf(name);
    if (!groups.has(prefix)) groups.set(prefix, []);
    groups.get(prefix).push(name);
  }
  return [...groups].filter(([, names]) => names.length);
}
