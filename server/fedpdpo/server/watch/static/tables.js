// Fills the tables. Whatever comes from a client is only ever set as text.

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = count, unit = 0;
  while (size >= 1000 && unit < units.length - 1) [size, unit] = [size / 1000, unit + 1];
  return `${size.toFixed(unit && size < 100 ? 1 : 0)} ${units[unit]}`;
}

export function seconds(count) {
  if (count === null || count === undefined) return "";
  if (count < 100) return `${count.toFixed(count < 10 ? 1 : 0)} s`;
  return count < 6000 ? `${(count / 60).toFixed(0)} min` : `${(count / 3600).toFixed(1)} h`;
}

export const clock = (at) => new Date(1000 * at).toLocaleTimeString();

function cell(name, content, kind = "") {
  const made = document.createElement(name);
  if (content instanceof Node) made.append(content);
  else made.textContent = content ?? "";
  if (kind) made.className = kind;
  return made;
}

/** Replace a table's content: titles, and rows of texts, nodes or [text, class]. */
export function fill(table, caption, titles, rows) {
  const head = document.createElement("tr");
  head.append(...titles.map((title) => {
    const made = cell("th", title);
    made.scope = "col";
    return made;
  }));
  const body = rows.map((row) => {
    const made = document.createElement("tr");
    made.append(...row.map((one) => (Array.isArray(one) ? cell("td", ...one) : cell("td", one))));
    return made;
  });
  const focused = table.contains(document.activeElement) ? document.activeElement.ariaLabel : null;
  const [top, rest] = [document.createElement("thead"), document.createElement("tbody")];
  top.append(head);
  rest.append(...body);
  table.replaceChildren(...(caption ? [cell("caption", caption)] : []), top, rest);
  if (focused) [...table.querySelectorAll("button")].find((one) => one.ariaLabel === focused)?.focus();
}

function progress(share, label) {
  const made = document.createElement("progress");
  made.max = 1;
  made.value = share;
  made.setAttribute("aria-label", label);
  return made;
}

export function fillClients(table, overview) {
  const newest = overview.measured.at(-1)?.by_client ?? {};
  const rows = overview.clients.map((client) => {
    const own = newest[client.client_id];
    const doing = document.createElement("span");
    doing.append(client.state === "answered" ? "delta is in" : client.activity || client.state);
    if (client.activity) doing.append(" ", progress(client.progress, `${client.client_id}: ${client.activity}`));
    return [
      client.client_id,
      [doing, client.state === "away" ? "warn" : ""],
      `${client.num_pairs}`,
      own?.global ? percent(own.global.combined) : "",
      own?.personalized ? percent(own.personalized.combined) : "",
      bytes(client.bytes_received),
      bytes(client.bytes_sent),
      client.state === "left" ? "" : `${seconds(client.silent_s)} ago`,
      [client.remarks.join("; "), "wraps warn"],
    ];
  });
  const titles = ["client", "doing", "pairs", "shared", "personalised", "received", "sent", "heard", "remarks"];
  fill(table, `${rows.length} clients`, titles, rows);
}

export function fillRounds(table, overview, choose) {
  const rows = overview.rounds.map((round) => {
    const button = cell("button", `${round.number}`, "plain");
    button.type = "button";
    button.setAttribute("aria-label", `Show round ${round.number} by client`);
    button.addEventListener("click", () => choose(round.number));
    const took = (round.published_at_s ?? overview.now_s) - round.opened_at_s;
    return [
      button,
      clock(round.opened_at_s),
      round.published_at_s === null ? `open for ${seconds(took)}` : seconds(took),
      `${round.num_deltas} of ${round.num_asked}`,
      round.loss === null ? "" : round.loss.toFixed(4),
      bytes(round.num_bytes),
      round.slowest ? `${round.slowest}, ${seconds(round.seconds)}` : "",
      [round.missing.join(", "), round.published_at_s === null ? "wraps" : "wraps warn"],
    ];
  });
  const titles = ["round", "opened", "took", "deltas", "mean loss", "bytes", "slowest", "missing"];
  fill(table, rows.length ? "" : "No round was opened yet.", titles, rows);
}

export function fillParts(into, number, parts) {
  const table = document.createElement("table");
  const rows = parts.map((part) => [
    part.client_id, `${part.answers}`, `${part.num_pairs}`, bytes(part.num_bytes), seconds(part.seconds),
    part.loss.toFixed(4), percent(part.accuracy), part.norm === null ? "" : part.norm.toPrecision(3),
  ]);
  const titles = ["client", "answers round", "pairs", "delta", "training", "loss", "accuracy in training", "norm"];
  fill(table, `Round ${number}, by client`, titles, rows);
  into.replaceChildren(table);
}

export function fillAccuracies(table, overview, kind) {
  const rows = overview.measured.toReversed().flatMap((one) =>
    Object.entries(one.views).map(([view, kinds]) => {
      const { mean, worst, best, worst_client, best_client } = kinds[kind];
      return [`${one.version}`, view, `${one.num_clients}`, percent(mean), `${percent(worst)}, ${worst_client}`, `${percent(best)}, ${best_client}`];
    }));
  fill(table, `The ${kind} reward`, ["adapter", "view", "clients", "mean", "worst", "best"], rows);
}
