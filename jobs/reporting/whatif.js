// Moves the thresholds of the report. All numbers stand in the page (#what-if-data); nothing is loaded, and texts
// from the web are never touched as HTML. See jobs/reporting/whatif.py for what is counted and how it is coded.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("what-if-data").textContent);
  const ALWAYS = 65534, NEVER = 65535;
  const section = document.getElementById("what-if");
  const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
  const show = n => number.format(Math.round(n));
  const percent = (part, whole) => whole ? (100 * part / whole).toFixed(1) + "\u00a0%" : "\u2013";
  const bytes = Uint8Array.from(atob(data.codes), c => c.charCodeAt(0));
  const codes = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < codes.length; i++) codes[i] = bytes[2 * i] | bytes[2 * i + 1] << 8;

  // state of each cut: index of its threshold, -1 while it is as the rule has it and the rule has no number
  const at = data.cuts.map(cut => cut.start);
  const offFirst = cut => cut.start < 0 && cut.off === cut.above;
  const toPosition = (cut, i) => i < 0 ? (offFirst(cut) ? 0 : cut.edges.length) : i + (offFirst(cut) ? 1 : 0);
  const toIndex = (cut, p) => {
    const i = p - (offFirst(cut) ? 1 : 0);
    return i < 0 || i >= cut.edges.length ? -1 : i;
  };
  const moved = () => data.cuts.map((cut, k) => k).filter(k => at[k] !== data.cuts[k].start);
  const sum = (list, from, to) => { let n = 0; for (let i = from; i < to; i++) n += list[i]; return n; };

  // rows that pass everything else and threshold i of one cut: exact
  function passing(cut, i) {
    if (i < 0) return cut.off ? sum(cut.counts, 0, cut.counts.length) + cut.nulls : 0;
    return cut.above ? sum(cut.counts, i + 1, cut.counts.length) : sum(cut.counts, 0, i + 1);
  }
  function passes(cut, code, i) {
    if (code === ALWAYS) return true;
    if (i < 0) return cut.off;
    return code !== NEVER && (cut.above ? code > i : code <= i);
  }
  function one(k, i) {
    const cut = data.cuts[k], change = passing(cut, i) - passing(cut, cut.start);
    return { kept: data.kept + change, enter: Math.max(0, change), leave: Math.max(0, -change), exact: true };
  }
  function together(which) {
    if (which.length === 0) return { kept: data.kept, enter: 0, leave: 0, exact: true };
    if (which.length === 1) return one(which[0], at[which[0]]);
    let enter = 0, leave = 0;
    for (let row = 0; row < data.rows; row++) {
      let before = true, after = true;
      for (let k = 0; k < data.cuts.length && (before || after); k++) {
        const code = codes[k * data.rows + row], cut = data.cuts[k];
        before = before && passes(cut, code, cut.start);
        after = after && passes(cut, code, at[k]);
      }
      if (after && !before) enter++;
      if (before && !after) leave++;
    }
    const scale = data.rows ? data.open / data.rows : 1;
    const result = { kept: data.kept + (enter - leave) * scale, enter: enter * scale, leave: leave * scale };
    const share = data.rows ? (enter + leave) / data.rows - ((enter - leave) / data.rows) ** 2 : 0;
    result.exact = data.open === data.rows;
    result.error = 1.96 * data.open * Math.sqrt(Math.max(share, 0) / Math.max(data.rows, 1));
    return result;
  }

  // the rule with the thresholds as they stand: what `pairmill pack --where` takes
  function literal(k) {
    const cut = data.cuts[k], text = at[k] < 0 || at[k] === cut.start ? cut.asked : cut.edges[at[k]];
    return text + cut.suffix;
  }
  function rule() {
    const texts = data.parts.map(part => {
      const mine = part.pieces.filter(p => typeof p === "number");
      if (!mine.some(k => at[k] !== data.cuts[k].start)) return part.text;
      return part.pieces.map(p => typeof p === "number" ? literal(p) : p).join("");
    });
    data.cuts.forEach((cut, k) => {
      if (cut.inRule || at[k] < 0) return;
      const text = cut.sql + literal(k);
      texts.push(cut.mark ? "(" + cut.mark + " IS NULL OR " + text + ")" : text);
    });
    return texts.join(" AND ") || "true";
  }

  const words = result => {
    const about = result.exact ? "" : "about ";
    const range = result.exact ? "" : " (\u00b1\u00a0" + show(result.error) + ")";
    return about + show(result.kept) + range + " kept, " + percent(result.kept, data.pictures) + " of " +
      show(data.pictures) + "; " + about + show(result.enter) + " enter, " + about + show(result.leave) + " leave";
  };

  const total = section.querySelector(".together"), live = section.querySelector(".live");
  let timer = 0;
  function drawTotal(changed) {
    const which = moved(), result = together(which);
    total.hidden = which.length === 0;
    total.dataset.kept = Math.round(result.kept);
    total.dataset.enter = Math.round(result.enter);
    total.dataset.leave = Math.round(result.leave);
    total.dataset.exact = String(result.exact);
    total.querySelector(".kept-now").textContent = (result.exact ? "" : "\u2248\u00a0") + show(result.kept);
    total.querySelector(".of-now").textContent = "of " + show(data.pictures) + " pictures kept, " +
      percent(result.kept, data.pictures) + (result.exact ? "" : " (\u00b1\u00a0" + show(result.error) +
      ", estimated from " + show(data.rows) + " rows)");
    total.querySelector(".enter").textContent = "+" + show(result.enter) + " enter";
    total.querySelector(".leave").textContent = "\u2212" + show(result.leave) + " leave";
    total.querySelector("code").textContent = rule();
    if (changed) {  // once the hand rests, so that a reader is not flooded
      clearTimeout(timer);
      timer = setTimeout(() => { live.textContent = which.length ? words(result) : "as the rule has it"; }, 400);
    }
  }

  function drawPanel(panel) {
    const k = Number(panel.dataset.cut), cut = data.cuts[k], i = at[k], p = toPosition(cut, i);
    const last = cut.edges.length - 1 + (cut.start < 0 ? 1 : 0), result = one(k, i);
    const range = panel.querySelector("input[type=range]"), field = panel.querySelector("input[type=number]");
    const text = i < 0 ? "" : i === cut.start ? cut.asked : cut.edges[i];
    range.value = p;
    range.setAttribute("aria-valuetext", (text || range.dataset.off) + ": " + show(result.kept) + " kept");
    if (field.value !== text) field.value = text;
    const clip = panel.querySelector("clipPath rect"), now = panel.querySelector("line.now");
    const span = i < 0 ? (cut.off ? [-1, last + 2] : [0, 0]) : cut.above ? [p, last + 1 - p] : [-1, p + 1];
    clip.setAttribute("x", span[0]);
    clip.setAttribute("width", span[1]);
    now.setAttribute("x1", p);
    now.setAttribute("x2", p);
    const changed = i !== cut.start;
    panel.classList.toggle("moved", changed);
    panel.querySelector(".reset").hidden = !changed;
    panel.querySelector(".state").textContent = changed ? "moved to " + (text || "off") : panel.dataset.asked;
    const outcome = panel.querySelector(".outcome");
    outcome.dataset.kept = result.kept;
    outcome.dataset.enter = result.enter;
    outcome.dataset.leave = result.leave;
    outcome.textContent = changed ? "This threshold alone: " + words(result)
      : show(result.kept) + " kept by the rule as it is";
    drawCards(panel, cut, i, text);
  }
  function drawCards(panel, cut, i, text) {
    const low = panel.querySelector(".low"), high = panel.querySelector(".high");
    const upperOf = code => i < 0 ? cut.above === cut.off : code > i;
    const cards = [...panel.querySelectorAll(".rung")].sort((a, b) => a.dataset.order - b.dataset.order);
    const sides = [[], []];
    for (const card of cards) {
      const upper = upperOf(Number(card.dataset.code));
      (upper ? high : low).append(card);
      sides[Number(upper)].push(card);
      const before = passes(cut, Number(card.dataset.code), cut.start);
      const after = passes(cut, Number(card.dataset.code), i);
      card.classList.toggle("enters", after && !before);
      card.classList.toggle("leaves", before && !after);
      card.querySelector(".cross").textContent = after === before ? "" : after ? "enters" : "leaves";
    }
    const all = 2 * data.nearest, step = Math.max(1, Math.floor(cards.length / all));
    sides[0].forEach((card, n) => {
      card.hidden = i < 0 ? n % step !== 0 : n < sides[0].length - data.nearest;
    });
    sides[1].forEach((card, n) => { card.hidden = i < 0 ? n % step !== 0 : n >= data.nearest; });
    for (const [upper, place] of [[false, low], [true, high]]) {
      const group = place.closest(".ladder-side");
      const kept = i < 0 ? cut.off : upper === cut.above;
      group.querySelector("h4").textContent = (kept ? "Kept" : "Dropped") +
        (i < 0 ? ", from low to high" : ", " + cut.beside[Number(upper)] + " " + text);
      group.hidden = sides[Number(upper)].length === 0;
    }
  }

  for (const panel of section.querySelectorAll(".panel")) {
    const k = Number(panel.dataset.cut), cut = data.cuts[k];
    const range = panel.querySelector("input[type=range]"), field = panel.querySelector("input[type=number]");
    const set = i => { at[k] = i; drawPanel(panel); drawTotal(true); };
    range.addEventListener("input", () => set(toIndex(cut, Number(range.value))));
    field.addEventListener("change", () => {
      const wanted = field.valueAsNumber;
      if (Number.isNaN(wanted)) { set(cut.start); return; }
      let best = 0;  // the nearest threshold that was counted
      cut.edges.forEach((e, i) => { if (Math.abs(e - wanted) < Math.abs(cut.edges[best] - wanted)) best = i; });
      set(best);
    });
    panel.querySelector(".reset").addEventListener("click", () => { set(cut.start); range.focus(); });
    for (const control of panel.querySelectorAll(".control, .outcome")) control.hidden = false;
    drawPanel(panel);
  }
  total.querySelector(".reset-all").addEventListener("click", () => {
    data.cuts.forEach((cut, k) => { at[k] = cut.start; });
    section.querySelectorAll(".panel").forEach(drawPanel);
    drawTotal(true);
    section.querySelector("input[type=range]").focus();
  });
  drawTotal(false);
  section.classList.add("live-on");
})();
