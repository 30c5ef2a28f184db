"use strict";
// Draws what the report's Python side made: see plots.py for the meaning of each field. No network, no storage.
(() => {
  const plots = JSON.parse(document.getElementById("plot-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const HEIGHT = 300;

  const text = (value) => {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };
  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const DAY = 86400;
  // Ticks of a time axis: as fine as the steps between them, with the date where it changes.
  const times = (_, ticks, __, ___, step) => ticks.map((seconds, i) => {
    if (seconds === null) return "";
    const at = new Date(seconds * 1000);
    const month = MONTHS[at.getUTCMonth()];
    if (step >= 28 * DAY) return `${month} ${at.getUTCFullYear()}`;
    const day = `${at.getUTCDate()} ${month}`;
    if (step >= DAY) return i ? day : `${day}\n${at.getUTCFullYear()}`;
    const clock = at.toISOString().slice(11, step >= 60 ? 16 : 19);
    const same = i && Math.floor(ticks[i - 1] / DAY) === Math.floor(seconds / DAY);
    return same ? clock : `${clock}\n${day}${i ? "" : ` ${at.getUTCFullYear()}`}`;
  });
  const moment = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");

  // The least and largest values drawn, with a little room; uPlot's own choice is too wide for logarithms.
  function range(spec, log) {
    return (_, low, high) => {
      if (spec) return spec;
      if (low === null || high === null) return [0, 1];
      if (log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
      const room = (high - low || Math.abs(high) || 1) * 0.05;
      return [low - room, high + room];
    };
  }

  function marksOf(plot) {
    return (u) => {
      const { left, top, width, height } = u.bbox;
      const ratio = devicePixelRatio || 1;
      const g = u.ctx;
      g.save();
      g.font = `${12 * ratio}px system-ui, sans-serif`;
      g.lineWidth = ratio;
      g.setLineDash([4 * ratio, 4 * ratio]);
      g.strokeStyle = g.fillStyle = colour("--text");
      for (const [x, name] of plot.marks) {
        const at = u.valToPos(x, "x", true);
        if (!(at >= left - 1 && at <= left + width + 1)) continue;
        g.beginPath(); g.moveTo(at, top); g.lineTo(at, top + height); g.stroke();
        const right = at < left + width / 2;
        g.textAlign = right ? "left" : "right";
        g.fillText(name, at + (right ? 5 : -5) * ratio, top + 12 * ratio);
      }
      g.restore();
    };
  }

  function seriesOf(one) {
    const stroke = colour("--s" + (one.colour % 6));
    const base = { label: one.name, stroke, width: 2, value: (_, v) => text(v), points: { show: false }, spanGaps: false };
    if (one.style === "dashed") return { ...base, dash: [6, 4], width: one.colour === 3 ? 1.25 : 2 };
    if (one.style === "steps") return { ...base, paths: uPlot.paths.stepped({ align: 1 }), fill: stroke + "1f" };
    if (one.style === "area") return { ...base, fill: stroke + "1f" };
    if (one.style === "points") {
      return { ...base, width: 0, paths: () => null, points: { show: true, size: 8, fill: stroke, stroke } };
    }
    return base;
  }

  function axis(label, side, log, narrow) {
    const made = {
      label, stroke: colour("--soft"), labelSize: 20, labelGap: 2, font: "12px system-ui, sans-serif",
      labelFont: "600 12px system-ui, sans-serif",
      grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--line"), width: 1, size: 5 },
    };
    if (side === "y") made.size = narrow ? 46 : 56;
    made.values = (_, ticks) => ticks.map((v) => {
      if (v === null) return "";
      // only powers of ten carry a number on a logarithmic axis
      if (log && Math.abs(Math.log10(v) - Math.round(Math.log10(v))) > 1e-6) return "";
      return text(v);
    });
    return made;
  }

  function draw(holder, plot) {
    holder.replaceChildren();
    const narrow = holder.clientWidth < 420;
    const time = plot.xScale === "time", logX = plot.xScale === "log", logY = plot.yScale === "log";
    const xAxis = axis(plot.xLabel, "x", logX, narrow);
    if (time) xAxis.values = times;
    const options = {
      width: holder.clientWidth, height: HEIGHT, tzDate: (s) => uPlot.tzDate(new Date(s * 1000), "Etc/UTC"),
      cursor: { drag: { x: true, y: false }, points: { size: 7 } },
      scales: {
        x: { time, distr: logX ? 3 : 1, range: time ? undefined : range(plot.xRange, logX) },
        y: { distr: logY ? 3 : 1, range: range(plot.yRange && [plot.yRange[0], plot.yRange[1] * 1.02], logY) },
      },
      axes: [xAxis, axis(plot.yLabel, "y", logY, narrow)],
      series: [{ label: plot.xLabel, value: (_, v) => v === null || v === undefined ? "" : time ? moment(v) : text(v) },
        ...plot.series.map(seriesOf)],
      padding: [12, narrow ? 14 : 20, 0, 0],
      legend: { markers: { width: 0, fill: (_, i) => colour("--s" + (plot.series[i - 1].colour % 6)) } },
      hooks: { draw: [marksOf(plot)] },
    };
    if (!time) delete options.tzDate;
    return new uPlot(options, [plot.x, ...plot.series.map((one) => one.y)], holder);
  }

  const drawn = [];
  for (const figure of document.querySelectorAll("figure[data-plot]")) {
    const mine = plots.filter((plot) => plot.id === figure.dataset.plot);
    const holder = figure.querySelector(".plot");
    const select = figure.querySelector("select");
    const redraw = () => draw(holder, mine[select ? select.selectedIndex : 0]);
    if (select) select.addEventListener("change", redraw);
    drawn.push([holder, redraw, 0]);
  }
  const drawAll = (always) => {
    for (const one of drawn) {
      const width = one[0].clientWidth;
      if (always || width !== one[2]) { one[2] = width; one[1](); }
    }
  };
  drawAll(true);
  dark.addEventListener("change", () => drawAll(true));
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => drawAll(false), 120); });
})();
