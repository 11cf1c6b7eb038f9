// Puts the figures into the page and gives them its colours, light or dark, and its width.
"use strict";
(async () => {
  const {docs, items} = JSON.parse(document.getElementById("data").textContent);
  if (!items.length) return;
  const dark = matchMedia("(prefers-color-scheme: dark)"), narrow = matchMedia("(max-width: 600px)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  /** All figures, wherever they are in the document. */
  const figures = () => Bokeh.documents.flatMap((one) => one.roots());

  function paint() {
    const text = colour("quiet"), line = colour("line"), grid = colour("grid");
    for (const plot of figures()) {
      plot.background_fill_color = null;  // the card shows through
      plot.border_fill_color = null;
      plot.outline_line_color = null;
      for (const axis of [...plot.below, ...plot.left].filter((one) => "major_label_text_color" in one)) {
        axis.axis_label_text_color = text;
        axis.major_label_text_color = text;
        axis.axis_line_color = line;
        axis.major_tick_line_color = line;
        axis.minor_tick_line_color = null;
        axis.axis_label_text_font_style = "normal";
        axis.axis_label_text_font_size = "12px";
      }
      for (const one of plot.center) {
        if ("grid_line_color" in one) one.grid_line_color = grid;
        if ("label_text_color" in one) {
          one.label_text_color = text;
          one.background_fill_color = colour("card");
          one.background_fill_alpha = 0.8;
          one.border_line_color = line;
          one.label_text_font_size = "12px";
        }
      }
      for (const bar of plot.above) {
        bar.title_text_color = text;
        bar.major_label_text_color = text;
        bar.bar_line_color = null;
      }
      for (const one of plot.renderers) {
        const own = one.name === "heat" ? "" : colour(one.name ?? "");
        if (own) one.glyph.line_color = own;
      }
      for (const axis of plot.below) axis.ticker.desired_num_ticks = narrow.matches ? 4 : 8;
      // names of layers: as long as there is room for
      const [wide, short] = plot.tags.length === 2 ? plot.tags : [];
      if (wide) {
        const names = narrow.matches ? short : wide;
        plot.left[0].major_label_overrides = new Map(names.map((name, i) => [i, name]));
        plot.left[0].major_label_text_font_size = narrow.matches ? "9px" : "11px";
      }
    }
    // one axis of steps: all figures begin where the widest one does, if there is room for that
    const longest = Math.max(0, ...figures().flatMap((plot) => plot.tags[0] ?? []).map((name) => name.length));
    for (const plot of figures()) plot.min_border_left = narrow.matches ? 48 : Math.max(64, 24 + 6.2 * longest);
  }

  await Bokeh.embed.embed_items(docs, items);
  paint();
  for (const one of [dark, narrow]) one.addEventListener("change", paint);
  document.documentElement.dataset.drawn = "yes";
})();
