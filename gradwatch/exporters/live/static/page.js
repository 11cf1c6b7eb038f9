// The live page: asks data.json once a second and shows what is new. No text from the outside becomes markup:
// everything is set by textContent or drawn on a canvas.
"use strict";
(() => {
  const POLL_MS = 1000, LONGEST_WAIT_MS = 5000, ANSWER_MS = 10000, STALE_SECONDS = 15;
  const CURVES = {
    // where nothing is clipped, the applied norm lies inside the wider line of the norm
    norm: {label: "norm", dash: [], width: 4, alpha: 0.5},
    applied_norm: {label: "applied norm", dash: [], width: 1.3, alpha: 1},
    clip_norm: {label: "clip_norm", dash: [7, 4], width: 1.8, alpha: 1},
    threshold: {label: "explosion threshold", dash: [2, 3], width: 1.8, alpha: 1},
  };
  const BELOW = {loss: "loss", learning_rate: "learning rate"};  // plots of their own over the same steps
  const KINDS = {explosion: "explosion", trend: "growing trend", saturated: "saturated", vanishing: "vanishing", nonfinite: "NaN or Inf"};

  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // -- how numbers are written --------------------------------------------------------------------------

  const count = (x) => Math.round(x).toLocaleString("en-US");
  const short = (x) => {
    if (Number.isNaN(x)) return "NaN";
    if (!Number.isFinite(x)) return x > 0 ? "Inf" : "-Inf";
    if (x === 0) return "0";
    const size = Math.abs(x);
    return size >= 1e5 || size < 1e-3 ? x.toExponential(3) : String(Number(x.toPrecision(4)));
  };
  const percent = (x) => (x * 100).toFixed(x > 0 && x < 0.0995 ? 2 : 1) + " %";
  const WRITE = {
    count: (x) => count(Number(x)),
    number: (x) => short(Number(x)),
    norm: (x) => short(Number(x)),
    limit: (x) => (x === "Infinity" ? "none" : short(Number(x))),
    ratio: (x) => percent(Number(x)),
    text: (x) => String(x),
  };

  // -- plots --------------------------------------------------------------------------------------------

  const renewals = [];  // of the labels of log axes
  const plots = {};  // each is made when it has something to draw: a log axis of nothing has no ends

  function figure(options) {
    const made = Bokeh.Plotting.figure({
      sizing_mode: "stretch_width", toolbar_location: null, tools: "", min_border_right: 12, ...options,
    });
    made.toolbar.logo = null;
    return made;
  }

  // so wide that the steps of all plots over steps lie below one another
  const FRAME = {min_border_left: 78, min_border_right: 14};

  /** A label on each decade, or on every so many where there is no room; also on 2 and 5 where there is little to see. */
  function decades(low, high, room) {
    if (!(low > 0) || !(high > low)) return [];
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const within = last - first <= 2 ? [1, 2, 5] : [1];
    const stride = Math.max(1, Math.ceil((last - first) * within.length / room));
    const ticks = [];
    for (let decade = Math.ceil(first / stride) * stride; decade <= last; decade += stride)
      for (const digit of within) ticks.push(Number(`${digit}e${decade}`));
    return ticks.filter((tick) => tick >= low && tick <= high);
  }

  const tickText = (x) => (x >= 1e5 || x < 1e-3 ? x.toExponential(0).replace("e+", "e") : x.toLocaleString("en-US", {maximumFractionDigits: 3}));

  function tickDecades(axis, range, room) {
    axis.ticker = new Bokeh.FixedTicker({ticks: []});
    let last = "";
    const renew = () => {
      const ticks = decades(range.start, range.end, room);
      if (String(ticks) === last) return;
      last = String(ticks);
      axis.ticker.ticks = [];  // a label is written anew only for a tick that is new
      axis.major_label_overrides = new Map(ticks.map((tick) => [tick, tickText(tick)]));
      axis.ticker.ticks = ticks;
    };
    range.connect(range.properties.start.change, renew);
    range.connect(range.properties.end.change, renew);
    renewals.push(renew);
  }

  function makeCurves() {
    const B = Bokeh;
    const made = figure({
      height: 380, y_axis_type: "log", toolbar_location: "above", x_axis_label: "step",
      tools: "xpan,box_zoom,reset,save", ...FRAME,
    });
    tickDecades([...made.yaxis][0], made.y_range, 16);
    plots.sources = {};
    plots.lines = {};
    plots.events = new B.ColumnDataSource({data: {step: [], kind: [], color: []}});
    made.vspan({field: "step"}, {
      source: plots.events, line_color: {field: "color"}, line_width: 2, line_alpha: 0.55,
    });
    for (const [name, style] of Object.entries(CURVES)) {
      const source = plots.sources[name] = new B.ColumnDataSource({data: {step: [], value: []}});
      plots.lines[name] = made.line({field: "step"}, {field: "value"}, {
        source, line_width: style.width, line_alpha: style.alpha, line_dash: style.dash, line_join: "round",
      });
      made.add_tools(new B.HoverTool({
        renderers: [plots.lines[name]], mode: name === "norm" ? "vline" : "mouse", line_policy: "nearest",
        tooltips: [["step", "@step{0,0}"], [style.label, "@value{0.[0000]}"]],
      }));
    }
    for (const axis of made.xaxis) axis.formatter = new B.NumeralTickFormatter({format: "0,0"});
    return made;
  }

  /** Whether a linear axis would show the largest of these numbers and nothing else. */
  function spansDecades(values) {
    const finite = values.filter(Number.isFinite);
    const low = finite.reduce((a, b) => Math.min(a, b), Infinity), high = finite.reduce((a, b) => Math.max(a, b), 0);
    return low > 0 && high > 1000 * low;
  }

  /** A plot below the norm, over the same steps: it follows what is zoomed and panned there. */
  function makeBelow(name) {
    const B = Bokeh, lead = plots.curves.x_range;
    const {step} = plots.kept[name];  // what leads has no ends before it is drawn
    const log = plots[name + "IsLog"];
    const made = figure({
      y_axis_type: log ? "log" : "linear",
      height: name === "loss" ? 170 : 120, x_range: new B.Range1d({start: step[0], end: step[step.length - 1] + 1}), ...FRAME,
    });
    plots[name + "Events"] = new B.ColumnDataSource({data: {step: [], kind: [], color: []}});
    made.vspan({field: "step"}, {
      source: plots[name + "Events"], line_color: {field: "color"}, line_width: 2, line_alpha: 0.55,
    });
    const source = plots[name + "Source"] = new B.ColumnDataSource({data: {step: [], value: []}});
    plots[name + "Line"] = made.line({field: "step"}, {field: "value"}, {source, line_width: 1.5, line_join: "round"});
    made.add_tools(new B.HoverTool({
      renderers: [plots[name + "Line"]], mode: "vline", line_policy: "nearest",
      tooltips: [["step", "@step{0,0}"], [BELOW[name], "@value{0.[000000]}"]],
    }));
    const follow = () => {
      if (Number.isFinite(lead.start) && Number.isFinite(lead.end)) made.x_range.setv({start: lead.start, end: lead.end});
    };
    lead.connect(lead.properties.start.change, follow);
    lead.connect(lead.properties.end.change, follow);
    follow();
    for (const axis of made.xaxis) axis.formatter = new B.NumeralTickFormatter({format: "0,0"});
    if (log) tickDecades([...made.yaxis][0], made.y_range, 5);
    else for (const axis of made.yaxis) {
      axis.ticker.desired_num_ticks = name === "loss" ? 5 : 3;
      if (name === "learning_rate") axis.formatter = new B.BasicTickFormatter({precision: 1});
    }
    return made;
  }

  function makeHistogram() {
    const B = Bokeh;
    plots.bars = new B.ColumnDataSource({data: {left: [], right: [], count: []}});
    const made = figure({
      height: 260, x_axis_type: "log", x_axis_label: "norm", y_axis_label: "steps",
      y_range: new B.DataRange1d({start: 0}),
    });
    for (const axis of made.xaxis) axis.ticker.desired_num_ticks = 8;
    plots.quads = made.quad({
      left: {field: "left"}, right: {field: "right"}, top: {field: "count"}, bottom: 0, source: plots.bars,
    });
    for (const axis of made.yaxis) axis.formatter = new B.NumeralTickFormatter({format: "0,0"});
    made.add_tools(new B.HoverTool({
      renderers: [plots.quads], tooltips: [["norm", "@left{0.[0000]} to @right{0.[0000]}"], ["steps", "@count{0,0}"]],
    }));
    return made;
  }

  function makeLayers() {
    const B = Bokeh;
    plots.layerSource = new B.ColumnDataSource({data: {name: [], share: []}});
    const made = figure({
      height: 260, x_axis_label: "share of the squared norm", y_range: new B.FactorRange({factors: []}),
      x_range: new B.Range1d({start: 0, end: 1}),
    });
    plots.hbars = made.hbar({
      y: {field: "name"}, right: {field: "share"}, left: 0, height: 0.7, source: plots.layerSource,
    });
    for (const axis of made.xaxis) {
      axis.formatter = new B.NumeralTickFormatter({format: "0.[0] %"});
      axis.ticker.desired_num_ticks = 3;  // beside long names there is little room
    }
    for (const one of made.ygrid) one.visible = false;
    return made;
  }

  const MAKE = {
    curves: makeCurves, loss: () => makeBelow("loss"), learning_rate: () => makeBelow("learning_rate"),
    histogram: makeHistogram, layers: makeLayers,
  };

  /** Gives the plots there are the colours of the page, light or dark. */
  function paint() {
    const text = colour("quiet"), line = colour("line"), grid = colour("grid");
    for (const plot of Object.keys(MAKE).map((name) => plots[name]).filter(Boolean)) {
      plot.background_fill_color = null;  // the card shows through
      plot.border_fill_color = null;
      plot.outline_line_color = null;
      for (const axis of [...plot.xaxis, ...plot.yaxis]) {
        axis.axis_label_text_color = text;
        axis.major_label_text_color = text;
        axis.axis_line_color = line;
        axis.major_tick_line_color = line;
        axis.minor_tick_line_color = null;
        axis.axis_label_text_font_style = "normal";
        axis.axis_label_text_font_size = "12px";
        axis.major_label_text_font_size = "12px";
      }
      for (const axis of plot.xaxis)  // long numbers of steps side by side need room
        if (axis.ticker.desired_num_ticks) axis.ticker.desired_num_ticks = innerWidth < 600 || plot === plots.histogram ? 3 : 8;
      for (const one of [...plot.xgrid, ...plot.ygrid]) one.grid_line_color = grid;
    }
    if (plots.curves) {
      for (const name of Object.keys(CURVES)) plots.lines[name].glyph.line_color = colour(name);
      const {step, kind} = plots.events.data;
      plots.events.data = {step, kind, color: kind.map(colour)};
    }
    for (const name of Object.keys(BELOW).filter((one) => plots[one])) {
      plots[name + "Line"].glyph.line_color = colour(name);
      const {step, kind} = plots[name + "Events"].data;
      plots[name + "Events"].data = {step, kind, color: kind.map(colour)};
    }
    if (plots.histogram) {
      plots.quads.glyph.fill_color = colour("norm");
      plots.quads.glyph.line_color = colour("card");
    }
    if (plots.layers) {
      plots.hbars.glyph.fill_color = colour("norm");
      plots.hbars.glyph.line_color = null;
    }
  }

  function showKey(kinds) {
    const item = (text, className, name, dash) => {
      const li = document.createElement("li"), mark = document.createElement("i");
      mark.className = className;
      mark.style.borderColor = `var(--${name})`;
      if (dash.length) mark.style.borderTopStyle = dash[0] > 4 ? "dashed" : "dotted";
      li.append(mark, text);
      return li;
    };
    $("key").replaceChildren(
      ...Object.entries(CURVES).map(([name, style]) => item(style.label, name, name, style.dash)),
      ...kinds.filter((kind) => kind in KINDS).map((kind) => item(KINDS[kind], "event", kind, [])),
    );
  }

  // -- what was shown last ------------------------------------------------------------------------------

  let shown = {key: "", next: 0, run: "", said: "", alerts: ""};
  let wanted = fromAddress();

  /** The monitor that the address names; "" if none, or if it is no text that can be decoded. */
  function fromAddress() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch (error) {
      return "";
    }
  }

  function choose(name) {
    wanted = name;
    history.replaceState(null, "", "#" + encodeURIComponent(wanted));
    Object.assign(shown, {key: "", next: 0, said: ""});
    ask();
  }

  function show(data) {
    showMonitors(data);
    showOverview(data);
    $("unknown").hidden = !data.unknown;
    $("unknown").textContent = data.unknown ? `There is no monitor "${data.unknown}" here. `
      + (data.monitor ? `Shown is "${data.monitor}".` : "There is none at all yet.") : "";
    const steps = data.numbers ? data.numbers.find(([id]) => id === "steps")[3] : 0;
    document.body.classList.toggle("waiting", !(steps > 0));
    if (!(steps > 0)) {
      say(data.run_id ? `${data.monitor} has made no step yet. What there is to see appears with its first step.`
        : "No monitor yet: the page waits for the first step of a watched training.");
      document.documentElement.dataset.steps = 0;
      shown.run = data.run_id || "";
      shown.said = "";
      return;
    }
    const numbers = Object.fromEntries(data.numbers.map(([id, , kind, value]) => [id, {value, text: WRITE[kind](value)}]));
    showTiles(data, numbers);
    showNumbers(data);
    showLayerTable(data);
    showAlerts(data);
    summarise(data, numbers);
    showPlots(data);
    shown.run = data.run_id;
    document.documentElement.dataset.steps = numbers.steps.value;
  }

  function showMonitors(data) {
    const many = data.monitors.length > 1;
    $("choice").hidden = !many;
    $("monitor").hidden = many;
    $("monitor").textContent = data.monitor || "";
    document.title = data.monitor ? `${data.state.word} · ${data.monitor} · gradwatch` : "gradwatch";
    const list = $("monitors");
    if (JSON.stringify(data.monitors) !== list.dataset.names) {
      list.dataset.names = JSON.stringify(data.monitors);
      list.replaceChildren(...data.monitors.map((name) => new Option(name, name)));
    }
    if (data.monitor) list.value = data.monitor;
  }

  /** One row for each monitor, the most urgent first, where there are several. */
  function showOverview(data) {
    const rows = data.overview || [];
    $("overview").hidden = !rows.length;
    const body = $("overview-rows");
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((one, i) => {
      let row = body.rows[i];
      if (!row) {
        row = body.insertRow();
        const head = document.createElement("th"), link = document.createElement("a");
        head.scope = "row";
        link.addEventListener("click", (event) => {
          event.preventDefault();
          choose(row.dataset.monitor);
        });
        head.append(link);
        row.append(head);
        for (let cell = 0; cell < 6; cell++) row.insertCell();
      }
      row.dataset.monitor = one.monitor;
      row.dataset.tone = one.state.tone;
      row.toggleAttribute("aria-current", one.monitor === data.monitor);
      const link = row.cells[0].firstChild;
      link.href = "#" + encodeURIComponent(one.monitor);
      const texts = [one.monitor, since(one.state) || one.state.word, count(one.steps), loss(one.loss),
        one.norm === null ? "" : short(Number(one.norm)), count(one.episodes), one.verdict];
      texts.forEach((text, at) => {
        const place = at ? row.cells[at] : link;
        if (place.textContent !== text) place.textContent = text;
      });
    });
  }

  const loss = (x) => (x === null ? "" : Number.isFinite(Number(x)) ? short(Number(x)) : "NaN or Inf");
  const since = (state) => (state.no_learning_since === null ? "" : `no learning since step ${count(state.no_learning_since)}`);

  /** Brings one plot up to date with `fill`, and makes it first if it is not there yet. */
  function showPlot(name, fill) {
    const first = !plots[name];
    if (first) plots[name] = MAKE[name]();
    fill();
    if (first) {
      paint();
      Bokeh.Plotting.show(plots[name], $(name));
    }
    for (const renew of renewals) renew();
  }

  function showPlots(data) {
    // a new run has nothing to show before its first step: what was there stays
    if (Object.values(data.curves).some(({step}) => step.length > 0)) {
      showPlot("curves", () => {
        showCurves(data);
        showEvents(data);
      });
      for (const name of Object.keys(BELOW)) {
        const there = plots[name] || data.curves[name].step.length > 0;
        $(name + "-part").hidden = !there;
        if (there) showBelow(name);
      }
      showEvents(data);
    }
    if (data.histogram.count.length) showPlot("histogram", () => { plots.bars.data = data.histogram; });
    if (data.layers.length) showPlot("layers", () => showLayers(data));
  }

  function showBelow(name) {
    const {value} = plots.kept[name], log = spansDecades(value);
    if (plots[name] && plots[name + "IsLog"] !== log) {
      plots[name] = null;  // made anew, with the other axis
      $(name).replaceChildren();
    }
    plots[name + "IsLog"] = log;
    showPlot(name, () => {
      // of a curve that is level, so that its axis is around it and not around zero
      if (value.length) plots[name].y_range.default_span = Math.abs(value[value.length - 1]) || 1;
      plots[name + "Source"].data = plots.kept[name];
    });
  }

  function showCurves(data) {
    const whole = data.key !== shown.key || data.from === 0;
    plots.kept = plots.kept || {};
    for (const name of [...Object.keys(CURVES), ...Object.keys(BELOW)]) {
      const fresh = data.curves[name];
      if (whole || !plots.kept[name]) {
        plots.kept[name] = fresh;
      } else {
        const {step, value} = plots.kept[name];
        let kept = step.length;
        while (kept > 0 && step[kept - 1] >= data.from) kept--;
        plots.kept[name] = {step: step.slice(0, kept).concat(fresh.step), value: value.slice(0, kept).concat(fresh.value)};
      }
      if (name in CURVES) plots.sources[name].data = plots.kept[name];
    }
    // thousands of steps in a few hundred pixels are a band: it steps back behind the limits
    const band = data.width > 1 || plots.kept.norm.step.length > 600;
    plots.lines.norm.glyph.line_width = band ? 1.4 : CURVES.norm.width;
    plots.lines.norm.glyph.line_alpha = band ? 0.8 : CURVES.norm.alpha;
    plots.lines.applied_norm.glyph.line_alpha = band ? 0.5 : CURVES.applied_norm.alpha;
    plots.lines.clip_norm.glyph.line_width = plots.lines.threshold.glyph.line_width = band ? 2.6 : 1.8;
    shown.key = data.key;
    shown.next = data.next;
    $("curves-note").textContent = data.width > 1
      ? `The lowest and the highest of every ${count(data.width)} steps.` : "Every step.";
  }

  function showEvents(data) {
    const began = data.events.filter((event) => event.phase === "began");
    const step = began.map((event) => event.step), kind = began.map((event) => event.kind);
    for (const source of [plots.events, ...Object.keys(BELOW).map((name) => plots[name + "Events"])].filter(Boolean)) {
      if (JSON.stringify([source.data.step, source.data.kind]) === JSON.stringify([step, kind])) continue;
      source.data = {step, kind, color: kind.map(colour)};
    }
  }

  function tile(name, main, below) {
    const [big, small] = document.querySelectorAll(`[data-tile="${name}"] dd`);
    big.textContent = main;
    small.textContent = below;
  }

  function showTiles(data, n) {
    document.querySelector('[data-tile="state"]').dataset.tone = data.state.tone;
    tile("state", data.state.word, since(data.state) || (data.verdict ? data.verdict.verdict : `last step: ${n.verdict.text}`));
    $("harm").hidden = !since(data.state);
    $("harm").textContent = since(data.state) && `${since(data.state)[0].toUpperCase()}${since(data.state).slice(1)}: `
      + "almost nothing reaches the weights.";
    tile("loss", loss(data.loss) || "–", data.loss === null ? "not told" :
      data.loss_nonfinite_since !== null ? `since step ${count(data.loss_nonfinite_since)}` :
      data.learning_rate === null ? "of the last step" : `learning rate ${short(Number(data.learning_rate))}`);
    tile("steps", n.steps.text, `${n.steps_per_second.text} a second`);
    tile("norm", n.norm.text, `after clipping ${n.applied_norm.text}`);
    tile("clip", n.clip_norm.text, `explosion above ${n.explosion_threshold.text}`);
    tile("clipped", n.clip_ratio.text, n.expected_clip_ratio ? `expected: ${n.expected_clip_ratio.text}` : "of all steps");
    const kinds = Object.keys(KINDS).filter((kind) => n["anomalies_" + kind].value > 0);
    const all = kinds.reduce((sum, kind) => sum + n["anomalies_" + kind].value, 0);
    tile("episodes", count(all), kinds.map((kind) => `${n["anomalies_" + kind].text} ${KINDS[kind]}`).join(", ") || "episodes");
    tile("overhead", n.overhead_ratio.text, "of the training thread");
  }

  function showNumbers(data) {
    const body = $("numbers");
    if (body.rows.length !== data.numbers.length || [...body.rows].some((row, i) => row.dataset.id !== data.numbers[i][0])) {
      body.replaceChildren(...data.numbers.map(([id, label]) => {
        const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
        row.dataset.id = id;
        head.scope = "row";
        head.textContent = label;
        row.append(head, cell);
        return row;
      }));
    }
    data.numbers.forEach(([, , kind, value], i) => {
      const cell = body.rows[i].cells[1];
      cell.textContent = WRITE[kind](value);
      cell.dataset.value = value;
    });
  }

  function showLayers(data) {
    const names = data.layers.map(([, , , short], i) => `${i + 1} · ${short}`);
    const shares = data.layers.map(([, , share]) => share ?? 0);
    plots.layers.y_range.factors = names.slice().reverse();
    plots.layers.x_range.end = Math.max(0.05, ...shares) * 1.05;
    plots.layerSource.data = {name: names, share: shares};
  }

  function showLayerTable(data) {
    $("layers-note").textContent = data.layers.length
      ? `${data.layers.length} of ${count(data.layer_count)} variables, at the last step.` : "No layers yet.";
    $("layer-rows").replaceChildren(...data.layers.map(([name, norm, share]) => {
      const row = document.createElement("tr");
      for (const [text, kind] of [[name, "name"], [short(Number(norm)), ""], [share === null ? "none" : percent(share), ""]]) {
        const cell = document.createElement("td");
        cell.textContent = text;
        cell.className = kind;
        row.append(cell);
      }
      return row;
    }));
  }

  function showAlerts(data) {
    const now = JSON.stringify(data.events.map((e) => [data.run_id, e.kind, e.step, e.phase, e.time]));
    if (now === shown.alerts) return;
    shown.alerts = now;
    showKey([...new Set(data.events.map((event) => event.kind))]);
    $("no-alerts").hidden = data.events.length > 0;
    $("alerts").replaceChildren(...data.events.slice().reverse().map((event) => {
      const item = document.createElement("li"), head = document.createElement("p"), text = document.createElement("p");
      const kind = document.createElement("span"), where = document.createElement("span");
      if (event.phase !== "over" && event.kind in KINDS) item.style.borderLeftColor = `var(--${event.kind})`;
      kind.className = "kind";
      kind.textContent = KINDS[event.kind] || event.kind;
      where.className = "quiet";
      where.textContent = ` ${event.phase} · step ${count(event.step)} · ${event.severity}`
        + (event.time ? ` · ${new Date(event.time * 1000).toLocaleTimeString()}` : "");
      head.append(kind, where);
      text.textContent = event.message;
      item.append(head, text);
      return item;
    }));
  }

  /** The text that a screen reader speaks: only when something changed that a person should hear about. */
  function summarise(data, n) {
    const last = data.events[data.events.length - 1];
    const what = `${data.run_id} ${data.state.word.replace(/[\d,]+/g, "")} ${data.events.length} ${last ? last.step : ""}`;
    if (what === shown.said) return;
    const fresh = shown.run && shown.run !== data.run_id ? "A new run began. " : "";
    say(`${fresh}Last change: ${data.monitor} ${data.state.word} at step ${n.steps.text}. Norm ${n.norm.text}, after clipping `
      + `${n.applied_norm.text}, clip_norm ${n.clip_norm.text}, explosion threshold ${n.explosion_threshold.text}. `
      + (last ? `Newest alert: ${KINDS[last.kind] || last.kind} ${last.phase === "over" ? "over by" : last.phase + " at"} step ${count(last.step)}.` : "No alerts."));
    shown.said = what;
  }

  function say(text) {
    if ($("summary").textContent !== text) $("summary").textContent = text;
  }

  function connection(state, text) {
    $("connection").className = "quiet " + state;
    if ($("connection").textContent !== text) $("connection").textContent = text;
  }

  // -- asking, once a second ----------------------------------------------------------------------------

  let timer = 0, failures = 0, asking = false;

  async function ask() {
    if (asking || document.hidden) return;
    asking = true;
    clearTimeout(timer);
    const impatience = new AbortController();
    const limit = setTimeout(() => impatience.abort(), ANSWER_MS);
    try {
      const query = new URLSearchParams({monitor: wanted, key: shown.key, since: shown.next});
      const answer = await fetch(`data.json?${query}`, {cache: "no-store", signal: impatience.signal});
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      show(await answer.json().then((data) => {
        const age = data.read ? data.time - data.read : 0;
        if (data.read && data.active && age > STALE_SECONDS) connection("lost", `numbers are ${count(age)} s old`);
        else connection("live", data.run_id && !data.active && data.numbers.find(([id]) => id === "steps")[3] > 0 ? "run ended" : "live");
        return data;
      }));
      failures = 0;
    } catch (error) {
      failures += 1;
      connection("lost", "no answer, trying again");
      if (failures === 3) {
        shown.said = "";
        say("The training does not answer. It may have ended or be restarting; this page keeps trying.");
      }
    } finally {
      clearTimeout(limit);
      asking = false;
      timer = setTimeout(ask, Math.min(POLL_MS * Math.max(1, failures), LONGEST_WAIT_MS));
    }
  }

  addEventListener("DOMContentLoaded", () => {
    showKey([]);
    dark.addEventListener("change", paint);
    document.addEventListener("visibilitychange", ask);
    $("monitors").addEventListener("change", () => {
      choose($("monitors").value);
    });
    addEventListener("hashchange", () => choose(fromAddress()));
    ask();
  });
})();
