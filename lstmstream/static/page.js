"use strict";
// Draws what /live/events sends. Whatever comes from outside (keys, fields, reasons, names) is set as text, never as HTML.
(() => {
  const POINTS = 300, GONE_AFTER_MS = 5000, RETRY_MS = 2000, SHOWN_VALUES = 16;
  const at = (id) => document.getElementById(id);
  const figures = at("figures");
  let token = sessionStorage.getItem("lstmstream-token") || "";
  let points = [], last = null, lastAt = 0, paused = false, request = null;

  // -- numbers as people read them

  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const known = (value) => value !== null && value !== undefined;
  const count = (value) => !known(value) ? "unknown" : Math.abs(value) < 1e6 ? whole.format(value) : short.format(value);
  const rate = (value) => value > 0 && value < 10 ? value.toFixed(1) : count(value);
  const percent = (part, all) => part ? `${Number((100 * part / all).toPrecision(2))} %` : "0 %";
  function seconds(value) {
    if (!known(value)) return "–";
    if (value < 1) return `${Math.round(value * 1000)} ms`;
    if (value < 120) return `${value.toPrecision(3)} s`;
    return value < 7200 ? `${Math.round(value / 60)} min` : value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} d`;
  }
  function bytes(value) {
    if (!known(value)) return "–";
    const unit = value < 2 ** 20 ? 1 : value < 2 ** 30 ? 2 : 3;
    return `${(value / 2 ** (10 * unit)).toPrecision(3)} ${["B", "KiB", "MiB", "GiB"][unit]}`;
  }
  const clock = (atS) => new Date(atS * 1000).toLocaleTimeString("en-GB");
  const minute = (atS) => clock(atS).slice(0, 5);

  function set(id, text) {
    const place = at(id);
    if (place.textContent !== text) place.textContent = text;
  }
  function show(id, yes) { at(id).hidden = !yes; }

  // Rows of [text, class]; a table is only touched when it changes, so that a selection in it survives.
  function table(id, head, rows) {
    const place = at(id), now = JSON.stringify([head, rows]);
    if (place.dataset.now === now) return;
    place.dataset.now = now;
    const line = (cells, kind) => {
      const row = document.createElement("tr");
      for (const [text, name] of cells) {
        const cell = document.createElement(kind);
        cell.textContent = text;
        if (name) cell.className = name;
        if (kind === "th") cell.scope = "col";
        row.append(cell);
      }
      return row;
    };
    const top = document.createElement("thead"), body = document.createElement("tbody");
    top.append(line(head, "th"));
    body.append(...rows.map((cells) => line(cells, "td")));
    place.replaceChildren(top, body);
  }

  // -- plots

  const plots = new Map();
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function draw(id, data, series, extra) {
    const place = at(id);
    if (!place.clientWidth) return;
    const made = plots.get(id);
    if (made) { made.setData(data); return; }
    const axis = { stroke: color("--soft"), grid: { stroke: color("--grid"), width: 1 }, ticks: { stroke: color("--grid") }, font: "12px system-ui" };
    const options = {
      width: place.clientWidth, height: 170, legend: { show: false }, cursor: { show: false },
      axes: [{ ...axis, space: 50, size: 30, values: (_, splits) => splits.map(minute), ...extra.x }, { ...axis, size: 56, space: 30, ...extra.y }],
      scales: extra.scales, series: [{}, ...series],
    };
    plots.set(id, new uPlot(options, data, place));
  }
  function redrawAll() {
    for (const plot of plots.values()) plot.destroy();
    plots.clear();
    if (last) drawAll(last);
  }
  const fromZero = { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] };
  const times = { time: true, range: () => { const end = points.length ? points[points.length - 1][0] : 0; return [end - POINTS, end]; } };
  const line = (name, fill) => ({ stroke: color(name), width: 1.5, spanGaps: false, points: { show: false }, fill: fill ? color(name) + "22" : undefined });
  const shortY = { values: (_, splits) => splits.map((v) => short.format(v)) };
  function drawAll(now) {
    const column = (index) => points.map((point) => point[index]);
    const x = column(0), scales = { x: times, y: fromZero };
    draw("plot-rate", [x, column(1)], [line("--s0", true)], { scales, y: shortY });
    draw("plot-latency", [x, column(2), column(3)], [line("--s0"), line("--s1")], { scales, y: shortY });
    draw("plot-lag", [x, column(4)], [line("--s0", true)], { scales, y: shortY });
    if (now.scores) drawScores(now.scores);
  }
  function drawScores(scores) {
    const sum = (counts) => counts.reduce((all, one) => all + one, 0);
    const shares = (counts) => { const all = sum(counts); return counts.map((one) => all && one ? one / all : null); };
    const x = scores.counts.map((_, bin) => bin);
    const edge = (bin) => bin >= 0 && bin < scores.edges.length && Number.isInteger(bin) ? String(scores.edges[bin]) : "";
    const bars = uPlot.paths.bars({ size: [0.9, 40], align: 1 }), steps = uPlot.paths.stepped({ align: 1 });
    draw("plot-scores", [x, shares(scores.counts), shares(scores.reference)], [
      { stroke: color("--s0"), fill: color("--s0") + "66", width: 1, paths: bars, points: { show: false } },
      { stroke: color("--s3"), width: 2, paths: steps, points: { show: false } },
    ], {
      scales: { x: { time: false, range: () => [0, scores.counts.length] }, y: { distr: 3, range: (_, least) => [Math.min(1e-5, least || 1e-5), 1] } },
      y: { grid: { show: false }, values: (_, splits) => splits.map((v) => Math.abs(Math.log10(v) % 1) < 1e-9 ? `${Number((100 * v).toPrecision(2))} %` : "") },
      x: { values: (_, splits) => splits.map(edge) },
    });
  }

  // -- one snapshot

  function render(now) {
    last = now;
    show("login", false);
    figures.hidden = false;
    set("name", now.name || "lstmstream");
    document.title = `${now.ready ? "" : "(!) "}${now.name} · lstmstream`;
    set("phase", now.ready ? now.phase : `${now.phase}, not ready`);
    at("phase").className = now.ready ? "badge good" : "badge";
    const model = now.model;
    set("model", model ? `model ${model.name} version ${model.version} (${model.task}, on ${model.device}`
      + `${known(model.threshold) ? `, threshold ${Number(model.threshold.toPrecision(4))}` : ""}) · up ${seconds(now.uptime_s)}` : "the model is not loaded yet");
    show("reasons", now.reasons.length > 0);
    at("reasons").replaceChildren(...now.reasons.map((reason) => {
      const item = document.createElement("li");
      item.textContent = reason;
      return item;
    }));
    const restore = now.restore;
    show("restore", restore.records_remaining > 0);
    if (restore.records_remaining > 0) {
      at("restore").querySelector("span").textContent = `${count(restore.records_remaining)} records left to read`;
      at("restore").querySelector("progress").value = restore.progress || 0;
    }
    const totals = now.totals;
    set("rate", rate(now.events_per_s));
    set("events", `${count(totals.events)} in all`);
    set("p50", seconds(now.latency.p50_s));
    set("p99", `p99 ${seconds(now.latency.p99_s)}`);
    set("lag", count(now.lag.total));
    set("partitions", `${now.lag.count} partition${now.lag.count === 1 ? "" : "s"}`);
    set("batch", known(now.batch_events) ? rate(now.batch_events) : "–");
    set("batches", `${rate(now.batches_per_s)} batches/s`);
    set("keys", count(now.state.keys));
    set("state", `${bytes(now.state.bytes)} of states`);
    set("memory", bytes(now.memory_bytes));
    set("cpu", `${now.cpu_cores.toFixed(2)} cores in use`);
    set("alerts", count(totals.alerts));
    set("alert-share", totals.events ? `${percent(totals.alerts, totals.events)} of events` : "");
    set("letters", count(totals.dead_letters));
    set("letter-share", totals.events ? `${percent(totals.dead_letters, totals.events)} of events` : "");
    show("scores", Boolean(now.scores));
    show("key-section", Boolean(token)); // without http.token there are no states to look up
    renderTables(now);
    renderStages(now.stages);
    drawAll(now);
    set("updated", `updated ${clock(now.time)}`);
  }

  function renderTables(now) {
    const fields = [...new Set(now.alerts.flatMap((alert) => Object.keys(alert.event || {})))].slice(0, 12);
    const keys = now.alerts.some((alert) => "key" in alert);
    const reasons = now.alerts.some((alert) => alert.reasons);
    show("no-alerts", !now.alerts.length);
    show("alert-table", now.alerts.length > 0);
    const text = (value) => !known(value) ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    table("alert-table",
      [["at"], ...(keys ? [["key"]] : []), ["score", "n"], ["event time"], ["step", "n"], ...(reasons ? [["reasons"]] : []), ...fields.map((name) => [name]), ["partition, offset", "n"]],
      now.alerts.map((alert) => [
        [clock(alert.at_s), "t"],
        ...(keys ? [["key" in alert ? alert.key === null ? "(none)" : text(alert.key) : "(too large to show)"]] : []),
        [Number(alert.score.toPrecision(4)).toString(), "n"],
        [alert.timestamp || "", "t"], [whole.format(alert.steps), "n"],
        ...(reasons ? [[(alert.reasons || []).map(([name, size]) => `${name} ${size.toPrecision(2)}`).join(", "), "w"]] : []),
        ...fields.map((name) => [text((alert.event || {})[name])]),
        [known(alert.offset) ? `${alert.partition}, ${alert.offset}` : "", "n"],
      ]));
    const stages = Object.entries(now.dead_letters);
    show("no-letters", !stages.length);
    show("letter-table", stages.length > 0);
    table("letter-table", [["stage"], ["count", "n"], ["last reasons"], ["at"], ["partition, offset", "n"]],
      stages.flatMap(([stage, letters]) => (letters.reasons.length ? letters.reasons : [null]).map((reason, index) => [
        [index ? "" : stage], [index ? "" : whole.format(letters.count), "n"], [reason ? reason.message : "", "w"],
        [reason ? clock(reason.at_s) : "", "t"], [reason ? `${reason.partition}, ${reason.offset}` : "", "n"],
      ])));
    show("lag-section", now.lag.partitions.length > 0);
    table("lag-table", [["partition"], ["lag, records", "n"], ["to replay after a crash", "n"]],
      now.lag.partitions.map(([number, lag, floor]) => [[String(number)], [count(lag), "n"], [known(floor) ? count(floor) : "restoring", "n"]]));
    show("worker-section", Boolean(now.workers));
    if (now.workers) {
      table("worker-table", [["worker"], ["phase"], ["events per second", "n"], ["lag", "n"], ["started again", "n"], ["on this machine"]],
        now.workers.map((one) => [[one.stage ? `${one.number}, ${one.stage}` : String(one.number)], [one.ready ? one.phase : `${one.phase}, not ready`], [rate(one.events_per_s), "n"],
          [count(one.lag), "n"], [String(one.restarts), "n"], [one.address, "t"]]));
    }
  }

  function renderStages(stages) {
    const place = at("stages");
    if (place.childElementCount !== Object.keys(stages).length) {
      place.replaceChildren(...Object.keys(stages).map((name) => {
        const row = document.createElement("div"), label = document.createElement("span");
        row.className = "stage";
        label.textContent = name;
        const meter = document.createElement("meter");
        meter.setAttribute("aria-label", name);
        row.append(label, meter, document.createElement("span"));
        return row;
      }));
    }
    Object.values(stages).forEach((share, index) => {
      const [, meter, value] = place.children[index].children;
      meter.value = Math.min(1, share);
      value.textContent = `${(100 * share).toFixed(1)} %`;
    });
  }

  // -- the state of one key

  async function lookUp(key) {
    let answer = {}, status = 0;
    try {
      const response = await fetch(`/state/${encodeURIComponent(key)}`, { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
      status = response.status;
      answer = await response.json();
    } catch (error) {
      answer = { hint: "the daemon is gone" };
    }
    const states = status === 200 ? answer.states : [];
    const about = (state) => `partition ${state.partition}: ${count(state.steps)} events, the last at ${state.timestamp}`
      + ` (offset ${state.offset}${state.committed ? "" : ", not committed yet"})`
      + (state.failures ? `, ${count(state.failures)} failures in a row` : "");
    set("key-answer", states.length ? states.map(about).join("; ") : `No state: ${answer.hint || answer.error || status}.`);
    show("key-table", states.length > 0);
    const several = states.length > 1;
    table("key-table", [...(several ? [["model, partition"]] : []), ["part"], ["numbers", "n"], ["values"]],
      states.flatMap((state) => Object.entries(state.parts).map(([name, part]) => {
        const values = [part].flat(Infinity);
        const text = values.slice(0, SHOWN_VALUES).map((one) => Number(one.toPrecision(4))).join(", ") + (values.length > SHOWN_VALUES ? ", …" : "");
        return [...(several ? [[`${state.model}, ${state.partition}`]] : []), [name], [count(values.length), "n"], [text, "w"]];
      })));
    const scores = states.flatMap((state) => state.scores);
    show("key-scores", scores.length > 0);
    table("key-scores", [["last scores"], ["score", "n"], ["alert"], ["offset", "n"]],
      scores.map((one) => [
        [one.timestamp, "t"], [known(one.score) ? Number(one.score.toPrecision(4)).toString() : "", "n"], [one.alert ? "yes" : ""], [String(one.offset), "n"],
      ]));
  }
  at("look-up").addEventListener("submit", (event) => {
    event.preventDefault();
    lookUp(at("key").value);
  });

  // -- the connection: fetch instead of EventSource, which cannot send a token

  function take(name, data) {
    lastAt = Date.now();
    show("gone", false);
    if (name === "history") {
      points = data.points;
    } else if (name === "snapshot") {
      const point = [data.time, data.events_per_s, data.latency.p50_s, data.latency.p99_s, data.lag.total, data.batch_events];
      if (!points.length || point[0] > points[points.length - 1][0]) points.push(point);
      points = points.slice(-POINTS);
      if (!paused) render(data);
    }
  }
  async function read(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const lines = text.slice(0, end).split("\n");
        text = text.slice(end + 2);
        const name = lines.find((one) => one.startsWith("event: ")), data = lines.find((one) => one.startsWith("data: "));
        if (name && data) take(name.slice(7), JSON.parse(data.slice(6)));
      }
    }
  }
  function gone(why) {
    const since = last ? `; the figures below are of ${clock(last.time)}` : "";
    set("gone", `${why}${since}. Trying again …`);
    show("gone", true);
    set("phase", "no connection");
    at("phase").className = "badge";
    document.title = `(gone) ${last ? last.name : "lstmstream"}`;
  }
  async function connect() {
    for (;;) {
      request = new AbortController();
      try {
        const headers = token ? { Authorization: `Bearer ${token}` } : {};
        const response = await fetch("/live/events", { headers, signal: request.signal, cache: "no-store" });
        if (response.status === 401) { askForToken(); return; }
        if (response.ok) {
          if (token) sessionStorage.setItem("lstmstream-token", token);
          lastAt = Date.now();
          await read(response);
          gone("The daemon is gone");
        } else {
          const answer = await response.json().catch(() => ({}));
          gone(`The daemon refuses: ${answer.hint || answer.error || response.status}`);
        }
      } catch (error) {
        gone("The daemon is gone");
      }
      lastAt = 0;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS * (0.5 + Math.random()))); // not all pages at once
    }
  }
  setInterval(() => { // a machine that vanished ends no connection
    if (lastAt && Date.now() - lastAt > GONE_AFTER_MS) { lastAt = 0; request.abort(); }
  }, 1000);

  function askForToken() {
    set("refused", token ? "That is not the token." : "");
    token = "";
    sessionStorage.removeItem("lstmstream-token");
    show("gone", false);
    show("login", true);
    set("phase", "token needed");
    at("token").focus();
  }
  at("login").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    at("token").value = "";
    connect();
  });
  at("pause").addEventListener("click", () => {
    paused = !paused;
    at("pause").textContent = paused ? "Go on" : "Pause";
    at("pause").setAttribute("aria-pressed", String(paused));
    if (paused) set("updated", `paused; the figures are of ${last ? clock(last.time) : "nothing yet"}`);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  let resized = 0;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(redrawAll, 200); });
  connect();
})();
