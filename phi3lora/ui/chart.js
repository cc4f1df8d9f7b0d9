// A chart of curves, drawn as SVG from what the server sends as JSON (see ui/curves.py):
//
//   {title, x, y, log, curves: [{name, colour, kind: "line" | "dots", points: [[step, seconds, y]]}]}
//
// gr.HTML(html_template=…, js_on_load="window.phi3lora.chart(element, props, watch)"): the tools in
// the template stay where they are while values come in; only the drawing is made anew.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const COLOURS = ["#1f9d92", "#d98a29", "#7182d6", "#c65b83", "#87992f"];
  const DASHES = ["", "", "7 3", "2 3", "9 3 2 3"];
  const WIDE_RANGE = 50; // highest over lowest value from which on the axis is logarithmic
  const ROWS = 24; // of the table that tells the curves without eyes
  const MARGIN = { left: 58, right: 14, top: 10, bottom: 34 };

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function node(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Three significant digits; 1.2e-4 for what is very small.
  function digits(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e");
    return String(Number(value.toPrecision(3)));
  }

  function duration(seconds) {
    const whole = Math.round(seconds);
    if (whole < 120) return `${whole} s`;
    if (whole < 7200) return `${Math.round(whole / 60)} min`;
    return `${(whole / 3600).toFixed(1)} h`;
  }

  // Round numbers from low to high, about `count` of them.
  function ticks(low, high, count, log) {
    if (log) return logTicks(low, high);
    const raw = (high - low) / Math.max(1, count);
    if (!(raw > 0)) return [low];
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= raw);
    const first = Math.ceil(low / step) * step;
    const found = [];
    for (let at = first; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const times of [1, 2, 5]) {
        const at = times * 10 ** power;
        if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
      }
    }
    const every = Math.ceil(found.length / 7);
    return found.filter((_, place) => place % every === 0);
  }

  // An exponential mean that starts at the first value, as TensorBoard's.
  function smoothed(points, weight) {
    let sum = 0;
    let share = 0;
    return points.map(([step, time, y]) => {
      sum = weight * sum + (1 - weight) * y;
      share = weight * share + (1 - weight);
      return [step, time, sum / share];
    });
  }

  const xOf = (point, axis) => point[axis === "time" ? 1 : 0];

  // What is drawn: curves within the zoom, smoothed, and the bounds of both axes.
  function laidOut(data, view) {
    const all = data.curves.flatMap((curve) => curve.points.map((point) => xOf(point, view.axis)));
    const [first, last] = [Math.min(...all), Math.max(...all)];
    const from = view.zoom ? view.zoom[0] : view.late ? first + (last - first) / 10 : first;
    const to = view.zoom ? view.zoom[1] : last;
    const curves = data.curves.map((curve) => {
      const line = curve.kind === "line" && view.smooth > 0;
      const points = line ? smoothed(curve.points, view.smooth) : curve.points;
      const within = points.filter((p) => xOf(p, view.axis) >= from && xOf(p, view.axis) <= to);
      return { ...curve, points: view.log ? within.filter((p) => p[2] > 0) : within };
    });
    const ys = curves.flatMap((curve) => curve.points.map((point) => point[2]));
    let [low, high] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
    if (!view.log) low -= (high - low) * 0.04;
    if (low === high) [low, high] = view.log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
    return { curves, from, to: to > from ? to : from + 1, low, high };
  }

  function scales(laid, view, width, height) {
    const inner = [MARGIN.left, width - MARGIN.right, height - MARGIN.bottom, MARGIN.top];
    const turn = view.log ? Math.log10 : (value) => value;
    const [low, high] = [turn(laid.low), turn(laid.high)];
    return {
      x: (value) => inner[0] + ((value - laid.from) / (laid.to - laid.from)) * (inner[1] - inner[0]),
      y: (value) => inner[2] - ((turn(value) - low) / (high - low)) * (inner[2] - inner[3]),
      back: (px) => laid.from + ((px - inner[0]) / (inner[1] - inner[0])) * (laid.to - laid.from),
    };
  }

  function axes(svg, laid, view, at, width, height) {
    const bottom = height - MARGIN.bottom;
    for (const value of ticks(laid.low, laid.high, 5, view.log)) {
      const y = at.y(value);
      svg.append(node("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      svg.append(node("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, digits(value)));
    }
    const words = view.axis === "time" ? duration : (value) => value.toLocaleString("en");
    for (const value of ticks(laid.from, laid.to, Math.max(2, width / 110), false)) {
      if (view.axis === "step" && !Number.isInteger(value)) continue;
      svg.append(node("text", { x: at.x(value), y: bottom + 18, "text-anchor": "middle" }, words(value)));
    }
    svg.append(node("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  }

  function curveOf(curve, view, at) {
    const colour = COLOURS[curve.colour % COLOURS.length];
    const made = node("g", { class: `curve ${curve.kind}`, "data-name": curve.name, fill: colour, stroke: colour });
    const places = curve.points.map((point) => [at.x(xOf(point, view.axis)), at.y(point[2])]);
    if (places.length > 1) {
      const path = places.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`);
      const dash = curve.kind === "dots" ? "1 4" : DASHES[curve.colour % DASHES.length];
      made.append(node("path", { d: path.join(""), fill: "none", "stroke-width": 2, "stroke-dasharray": dash }));
    }
    if (curve.kind === "dots" || places.length === 1) {
      for (const [x, y] of places) made.append(node("circle", { cx: x, cy: y, r: 3.5, stroke: "none" }));
    }
    return made;
  }

  // The value of a curve at the step or time that is nearest.
  function nearest(curve, x, axis) {
    let best = null;
    for (const point of curve.points) {
      if (!best || Math.abs(xOf(point, axis) - x) < Math.abs(xOf(best, axis) - x)) best = point;
    }
    return best;
  }

  function inWords(data) {
    const parts = data.curves.filter((curve) => curve.points.length).map((curve) => {
      const [first, last] = [curve.points[0], curve.points[curve.points.length - 1]];
      return `${curve.name}: ${digits(first[2])} at step ${first[0]}, ${digits(last[2])} at step ${last[0]}`;
    });
    return `${data.title} over steps. ${parts.join(". ")}.`;
  }

  function table(data) {
    const every = Math.max(1, Math.ceil(Math.max(...data.curves.map((c) => c.points.length)) / ROWS));
    const rows = data.curves.flatMap((curve) =>
      curve.points
        .filter((_, place) => place % every === 0 || place === curve.points.length - 1)
        .map(([step, time, y]) => [curve.name, step, duration(time), digits(y)]),
    );
    const made = document.createElement("table");
    made.className = "plain";
    for (const [place, row] of [["Curve", "Step", "Time", data.y], ...rows].entries()) {
      const line = made.insertRow();
      for (const value of row) {
        const cell = document.createElement(place ? "td" : "th");
        cell.textContent = value;
        line.append(cell);
      }
    }
    return made;
  }

  // A cell of CSV that no spreadsheet takes for a formula.
  window.phi3lora.cell = (value) =>
    `"${String(value).replace(/^([=+\-@])/, "'$1").replaceAll('"', '""')}"`;

  function csv(data) {
    const lines = data.curves.flatMap((curve) =>
      curve.points.map(([step, time, y]) => [window.phi3lora.cell(curve.name), step, time.toFixed(1), y].join(",")),
    );
    return ["curve,step,seconds,value", ...lines].join("\n") + "\n";
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // The drawing as a picture: what CSS gives the SVG on the page is written into it first.
  function png(svg, name) {
    const copy = svg.cloneNode(true);
    const style = getComputedStyle(svg);
    const back = getComputedStyle(svg.closest(".card") || document.body).backgroundColor;
    copy.setAttribute("xmlns", NS);
    copy.prepend(node("rect", { width: "100%", height: "100%", fill: back }));
    const rules = `text{fill:${style.color};font:12px sans-serif}.grid{stroke:${style.color};opacity:.15}
      .axis{stroke:${style.color};opacity:.5}.cross{display:none}`;
    copy.prepend(node("style", {}, rules));
    const picture = new Image();
    picture.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [2 * svg.clientWidth, 2 * svg.clientHeight];
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(blob, `${name}.png`));
    };
    const text = new XMLSerializer().serializeToString(copy);
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  class Chart {
    constructor(element) {
      this.element = element;
      this.figure = element.querySelector(".chart-view");
      this.said = element.querySelector(".chart-said");
      this.view = { log: null, smooth: 0, late: false, axis: "step", zoom: null };
      this.data = { curves: [] };
      element.querySelector(".chart-tools")?.addEventListener("input", (event) => this.set(event.target));
      element.querySelector(".chart-tools")?.addEventListener("click", (event) => this.press(event.target));
      element.querySelector(".chart-table")?.addEventListener("toggle", () => this.fill());
      new ResizeObserver(() => this.draw()).observe(this.figure);
    }

    // New values; a chart of something else starts with its own scale.
    show(text) {
      const data = text ? JSON.parse(text) : { curves: [] };
      if (data.of !== this.data.of) Object.assign(this.view, { log: null, zoom: null });
      this.data = data;
      this.element.classList.toggle("nothing", !data.curves.length);
      this.draw();
    }

    set(control) {
      if (control.name === "smooth") this.view.smooth = Number(control.value);
      if (control.name === "log") this.view.log = control.checked;
      if (control.name === "late") this.view.late = control.checked;
      if (control.name === "axis") this.view.axis = control.value;
      this.view.zoom = null;
      this.draw();
    }

    press(button) {
      const name = (this.data.title || "chart").toLowerCase().replaceAll(" ", "-");
      if (button.name === "png") png(this.svg, name);
      if (button.name === "csv") save(new Blob([csv(this.data)], { type: "text/csv" }), `${name}.csv`);
      if (button.name === "whole") this.unzoom();
    }

    unzoom() {
      this.view.zoom = null;
      this.draw();
    }

    draw() {
      const { data, view } = this;
      const width = this.figure.clientWidth;
      const height = this.figure.clientHeight || 260;
      if (!data.curves.some((curve) => curve.points.length) || width < 80) {
        this.figure.replaceChildren(data.said || "");
        return;
      }
      if (view.log === null) this.chooseScale();
      const laid = laidOut(data, view);
      const at = scales(laid, view, width, height);
      const svg = node("svg", { width, height, role: "img", tabindex: 0, "aria-label": inWords(data) });
      axes(svg, laid, view, at, width, height);
      for (const curve of laid.curves) svg.append(curveOf(curve, view, at));
      this.follow(svg, laid, at, width, height);
      this.svg = svg;
      const focused = this.figure.contains(document.activeElement);
      this.figure.replaceChildren(svg);
      if (focused) svg.focus();
      this.element.classList.toggle("zoomed", Boolean(view.zoom));
      this.name(laid.curves);
      this.fill();
    }

    // Which line is which: colour, and a form that tells them apart without colours.
    name(curves) {
      const legend = this.element.querySelector(".chart-legend");
      const title = document.createElement("b");
      title.textContent = this.data.title;
      const names = curves.map((curve) => {
        const item = document.createElement("span");
        const mark = document.createElement("i");
        mark.className = `${curve.kind} dash-${curve.kind === "dots" ? 0 : curve.colour % DASHES.length}`;
        mark.style.color = COLOURS[curve.colour % COLOURS.length];
        item.append(mark, curve.name);
        return item;
      });
      legend.replaceChildren(title, ...(curves.length > 1 ? names : []));
    }

    chooseScale() {
      const ys = this.data.curves.flatMap((curve) => curve.points.map((point) => point[2]));
      const low = Math.min(...ys);
      this.view.log = this.data.log !== false && low > 0 && Math.max(...ys) / low > WIDE_RANGE;
      const box = this.element.querySelector("input[name=log]");
      if (box) box.checked = this.view.log;
    }

    fill() {
      const folded = this.element.querySelector(".chart-table");
      if (folded?.open) folded.replaceChildren(folded.querySelector("summary"), table(this.data));
    }

    // A crosshair that says every curve's value, by pointer and by arrow keys; a drag zooms.
    follow(svg, laid, at, width, height) {
      const cross = node("line", { class: "cross", y1: MARGIN.top, y2: height - MARGIN.bottom });
      const band = node("rect", { class: "band", y: MARGIN.top, height: height - MARGIN.top - MARGIN.bottom });
      svg.append(band, cross);
      let down = null;
      let here = laid.to;
      const tell = (x) => {
        here = clamp(x, laid.from, laid.to);
        const px = at.x(here);
        cross.setAttribute("x1", px);
        cross.setAttribute("x2", px);
        cross.classList.add("on");
        this.tell(laid, here);
      };
      svg.addEventListener("pointermove", (event) => {
        tell(at.back(event.offsetX));
        if (down === null) return;
        const [left, right] = [Math.min(down, event.offsetX), Math.max(down, event.offsetX)];
        band.setAttribute("x", left);
        band.setAttribute("width", right - left);
      });
      svg.addEventListener("pointerdown", (event) => { down = event.offsetX; });
      svg.addEventListener("pointerup", (event) => {
        const ends = [at.back(Math.min(down, event.offsetX)), at.back(Math.max(down, event.offsetX))];
        const far = Math.abs(event.offsetX - down) > 12;
        down = null;
        if (!far) return;
        this.view.zoom = ends;
        this.draw();
      });
      svg.addEventListener("dblclick", () => this.unzoom());
      svg.addEventListener("pointerleave", () => { cross.classList.remove("on"); this.said.textContent = ""; });
      svg.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        tell(here + (by * (laid.to - laid.from)) / 50);
      });
    }

    tell(laid, x) {
      const values = laid.curves
        .map((curve) => [curve.name, nearest(curve, x, this.view.axis)])
        .filter(([, point]) => point);
      if (!values.length) return;
      const step = values[0][1];
      const at = this.view.axis === "time" ? duration(step[1]) : `step ${step[0].toLocaleString("en")}`;
      const words = values.map(([name, point]) => `${name} ${digits(point[2])}`);
      this.said.textContent = `${at}: ${words.join(" · ")}`;
    }
  }

  window.phi3lora.chart = (element, props, watch) => {
    const chart = new Chart(element);
    const show = () => chart.show(props.value);
    watch("value", show);
    show();
  };
})();
