"use strict";
document.documentElement.classList.add("live");

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

function drawn(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

// Tables: a click on a header sorts, a second one turns round; cells without a number or text come last.
for (const button of all(".sortable th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement, table = header.closest("table"), column = header.cellIndex;
    const up = header.getAttribute("aria-sort") === "descending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const known = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows].map((row) => [known(row), row]);
    const numbers = rows.some(([, row]) => "value" in row.cells[column].dataset);
    const empty = (key) => key === "–" || key === "";
    rows.sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      const order = numbers ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  });
}

// Charts of which those of one title are shown at a time.
for (const select of all(".switch")) {
  const charts = all(".switched .chart", select.closest("section"));
  const show = () => charts.forEach((chart) => { chart.hidden = chart.dataset.chart !== select.value; });
  select.addEventListener("change", show);
  show();
}

const root = one("#gallery");
if (root) {
  const facts = JSON.parse(one("#gallery-facts").textContent);
  const scenes = all(".scene", root).map((script, place) => ({
    place,
    ahead: Number(script.dataset.ahead),
    condition: script.dataset.condition,
    read: () => JSON.parse(script.textContent),
  }));
  const score = one("#score"), condition = one("#condition"), strip = one("#strip");
  const sensors = all("[name=sensor]"), models = all("[name=model]"), kinds = all("[name=kind]");
  const pair = [facts.model, facts.rival].map((name) => facts.models.indexOf(name));
  let shown = scenes, at = 0, scene = scenes[0].read();

  const difference = (ahead) =>
    ahead === 0 ? `${facts.model} and ${facts.rival} make equally many errors`
      : `${facts.model} makes ${Math.abs(ahead)} ${ahead > 0 ? "fewer" : "more"} error${ahead * ahead === 1 ? "" : "s"} than ${facts.rival}`;

  function choose() {
    const kind = kinds.find((radio) => radio.checked).value;
    shown = scenes.filter((s) => (kind === "all" || (kind === "win" ? s.ahead > 0 : s.ahead < 0))
      && (!condition || !condition.value || s.condition === condition.value));
    if (kind === "loss") shown.reverse();
    go(0);
    drawStrip();
  }

  function go(place) {
    at = Math.max(0, Math.min(place, shown.length - 1));
    one(".panels").hidden = one(".models").hidden = !shown.length;
    if (!shown.length) {
      one("#scene-name").textContent = "No such image";
      one("#scene-facts").textContent = "";
    } else {
      scene = shown[at].read();
      const struck = scene.struck.length ? `, ${scene.struck.join(", ")} struck by a fault` : "";
      one("#scene-name").textContent = `${scene.name}${scene.condition === null ? "" : `, ${scene.condition}`}${struck}`;
      one("#scene-facts").textContent = `Image ${at + 1} of ${shown.length}: ${difference(scene.ahead)}`;
      for (const panel of all(".panel")) {
        const name = panel.dataset.modality, image = one("img", panel), objects = scene.truth.length;
        image.hidden = !(name in scene.images);
        if (image.hidden) image.removeAttribute("src"); else image.src = scene.images[name];
        image.alt = `${name} image of ${scene.name}, ${objects} object${objects === 1 ? "" : "s"}`;
        one("figcaption", panel).textContent = image.hidden ? `${name}: no image` : name;
        one(".boxes", panel).setAttribute("viewBox", `0 0 ${scene.size[0]} ${scene.size[1]}`);
      }
      draw();
    }
    one("#previous").disabled = at === 0;
    one("#next").disabled = at >= shown.length - 1;
    all("#strip rect").forEach((bar, i) => bar.classList.toggle("now", i === at));
  }

  function outline(svg, box, style) {
    const area = { x: box[0], y: box[1], width: Math.max(box[2] - box[0], 0), height: Math.max(box[3] - box[1], 0) };
    drawn("rect", { ...area, class: "halo" }, svg);
    return drawn("rect", { ...area, class: style }, svg);
  }

  function draw() {
    const least = Number(score.value), named = one("#names").checked;
    one("#score-shown").textContent = least.toFixed(2);
    all(".panel").forEach((panel, i) => { panel.hidden = !sensors[i].checked; });
    for (const svg of all(".panel:not([hidden]) .boxes")) {
      svg.replaceChildren();
      const unit = scene.size[0] / (svg.clientWidth || scene.size[0]);
      const label = (box, text, below) => {
        if (!named) return;
        const y = below ? box[3] + 12 * unit : box[1] - 3 * unit;
        const inside = Math.max(11 * unit, Math.min(y, scene.size[1] - 3 * unit));
        drawn("text", { x: box[0], y: inside, "font-size": 11.5 * unit }, svg).textContent = text;
      };
      if (one("#truth").checked) {
        for (const box of scene.truth) {
          outline(svg, box, box[5] ? "truth crowd" : "truth");
          label(box, facts.classes[box[4]], true);
        }
      }
      scene.found.forEach((found, i) => {
        if (!models[i].checked) return;
        for (const box of found.boxes.filter((b) => b[4] >= least)) {
          const kind = { 1: "hit", 0: "false", [-1]: "uncounted" }[box[6]];
          outline(svg, box, `found c${i % 8} ${kind}`);
          label(box, `${facts.classes[box[5]]} ${box[4].toFixed(2)}`, false);
        }
      });
    }
    all(".count").forEach((output, i) => {
      const found = scene.found[i], kept = found.boxes.filter((b) => b[4] >= least);
      const count = (outcome) => kept.filter((b) => b[6] === outcome).length;
      output.textContent = [`${count(1)} of ${found.objects} found`, `${count(0)} false`, ...found.notes].join(", ");
    });
  }

  function drawStrip() {
    strip.replaceChildren();
    const most = Math.max(1, ...shown.map((s) => Math.abs(s.ahead)));
    const wide = 100 / Math.max(shown.length, 1);
    drawn("line", { x1: 0, x2: "100%", y1: "50%", y2: "50%" }, strip);
    shown.forEach((s, i) => {
      const height = Math.max(2, (46 * Math.abs(s.ahead)) / most);
      const y = s.ahead > 0 ? 50 - height : s.ahead < 0 ? 50 : 49;
      const style = `${s.ahead > 0 ? "win" : s.ahead < 0 ? "loss" : "even"}${i === at ? " now" : ""}`;
      const bar = { x: `${i * wide}%`, width: `${Math.min(wide * 0.8, 3)}%`, y: `${y}%`, height: `${height}%`, class: style };
      drawn("title", {}, drawn("rect", bar, strip)).textContent = `Image ${i + 1}: ${difference(s.ahead)}`;
    });
  }

  strip.addEventListener("click", (event) => {
    const area = strip.getBoundingClientRect();
    go(Math.floor(((event.clientX - area.left) / area.width) * shown.length));
  });
  one("#previous").addEventListener("click", () => go(at - 1));
  one("#next").addEventListener("click", () => go(at + 1));
  kinds.forEach((radio) => radio.addEventListener("change", choose));
  condition?.addEventListener("change", choose);
  [...sensors, ...models, one("#truth"), one("#names")].forEach((box) => box.addEventListener("change", draw));
  score.addEventListener("input", draw);
  addEventListener("resize", draw);

  const flip = (box) => { if (box) { box.checked = !box.checked; draw(); } };
  function alone() {
    const other = models[pair[0]].checked && !models[pair[1]].checked ? 1 : 0;
    models.forEach((box, i) => { box.checked = i === pair[other]; });
    draw();
  }
  function kind(value) {
    kinds.forEach((radio) => { radio.checked = radio.value === value; });
    choose();
  }
  function scoreBy(step) {
    score.value = Number(score.value) + step;
    draw();
  }
  const keys = {
    ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1),
    a: () => kind("all"), w: () => kind("win"), l: () => kind("loss"), x: alone,
    g: () => flip(one("#truth")), n: () => flip(one("#names")),
    "-": () => scoreBy(-0.05), "+": () => scoreBy(0.05), "=": () => scoreBy(0.05),
  };
  const edges = { Home: () => go(0), End: () => go(shown.length - 1) };
  addEventListener("keydown", (event) => {
    const target = event.target;
    if (event.ctrlKey || event.altKey || event.metaKey || target.closest("select, [type=range], .wide")) return;
    const digit = /^Digit([1-9])$/.exec(event.code);
    const act = digit ? () => flip((event.shiftKey ? sensors : models)[digit[1] - 1])
      : keys[event.key] ?? (root.contains(target) ? edges[event.key] : undefined);
    if (!act) return;
    event.preventDefault();
    act();
  });
  choose();
}
