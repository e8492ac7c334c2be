// The browser's half of the slicer: it unpacks the case once and draws slices on a canvas. slicer.py says what it gets.
const LONGEST = 480; // CSS pixels of the picture's longer side
const LEAP = 10; // slices that Page Up and Page Down go
const NOTCH = 50; // CSS pixels of wheel travel for one slice; a mouse wheel's notch has more
const LONG_WAY = 5; // pixels that Ctrl adds to a step of the reading mark
// Colours of the page where it has none of JupyterLab's: those of the text around.
const STYLE = `
.lab-slicer { display: flex; flex-wrap: wrap; gap: 0.5rem 1.25rem; padding: 0.5rem; font-size: 13px; line-height: 1.4;
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, inherit); }
.lab-slicer :focus-visible { outline: 2px solid var(--jp-brand-color1, currentColor); outline-offset: 2px; }
.lab-slicer figure { margin: 0; max-width: 100%; }
.lab-slicer canvas { display: block; max-width: 100%; height: auto; background: black; image-rendering: pixelated; }
.lab-slicer p { margin: 0.3rem 0 0; max-width: 30rem; overflow-wrap: anywhere; }
.lab-slicer .controls { flex: 1 1 16rem; max-width: 28rem; }
.lab-slicer .title { font-weight: 600; margin: 0 0 0.3rem; }
.lab-slicer .reading { min-height: 2.8em; font-variant-numeric: tabular-nums; }
.lab-slicer .field { display: grid; grid-template-columns: 4.5rem 1fr 6.5rem; gap: 0.5rem; align-items: center; }
.lab-slicer .field input { width: 100%; accent-color: var(--jp-brand-color1, auto); }
.lab-slicer select { font: inherit; color: var(--jp-ui-font-color1, FieldText);
  background: var(--jp-layout-color1, Field); border: 1px solid var(--jp-border-color1, currentColor); }
.lab-slicer fieldset { margin: 0.4rem 0; padding: 0.1rem 0.5rem 0.3rem;
  border: 1px solid var(--jp-border-color1, currentColor); }
.lab-slicer fieldset label { margin-right: 0.8rem; white-space: nowrap; }
.lab-slicer ul { list-style: none; margin: 0.4rem 0; padding: 0; columns: 11rem; }
.lab-slicer .swatch { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.4em; vertical-align: -0.1em;
  border: 1px solid currentColor; }
.lab-slicer [hidden] { display: none; }`;

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const words = (number) => String(Number(number.toPrecision(4)));

async function unpack(packed, Numbers) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Numbers(await new Response(stream).arrayBuffer());
}

async function render({ model, el }) {
  const scene = model.get("scene");
  const { shape, spacing, unit } = scene;
  const volumes = await Promise.all(
    scene.channels.map((channel) => Promise.all(channel.planes.map((plane) => unpack(plane, Uint16Array)))),
  );
  const layers = await Promise.all(
    scene.layers.map(async (layer) => {
      const table = new Uint8Array(layer.table.buffer, layer.table.byteOffset, layer.table.byteLength);
      return { ...layer, table, values: await unpack(layer.data, Uint8Array) };
    }),
  );
  const strides = [shape[1] * shape[2], shape[2], 1];
  const restsAt = shape.map((size) => Math.floor(size / 2)); // slice to come back to, for every axis
  let mark = null; // [row, column] read out, and whether the keyboard put it there
  let marked = false;

  // Where in the volumes a picture's pixels lie: index = first + row * down + column * across.
  function geometry() {
    const axis = model.get("axis");
    const index = Math.min(model.get("slice"), shape[axis] - 1);
    const rest = [0, 1, 2].filter((other) => other !== axis);
    const [rows, columns] = rest.map((other) => shape[other]);
    const turned = scene.axes[axis].turned;
    const [down, across] = rest.map((other, place) => (turned[place] ? -strides[other] : strides[other]));
    const first = index * strides[axis] - Math.min(0, down) * (rows - 1) - Math.min(0, across) * (columns - 1);
    return { axis, index, rest, rows, columns, down, across, first };
  }

  function set(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  // A list with one entry a channel, its entry of the channel in view replaced.
  const withChannel = (name, value) =>
    model.get(name).map((old, channel) => (channel === model.get("channel") ? value : old));

  function goTo(index) {
    const { axis, index: before } = geometry();
    const inside = Math.min(Math.max(index, 0), shape[axis] - 1);
    if (inside === before) return false;
    set({ slice: inside });
    return true;
  }

  // ---- controls
  const canvas = element("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", scene.description);
  const place = element("p", { className: "place" });
  place.setAttribute("aria-live", "polite");
  const reading = element("p", { className: "reading" });

  function field(name, input) {
    input.setAttribute("aria-label", name); // the label element holds the value too
    const output = element("output");
    const label = element("label", { className: "field" }, element("span", { textContent: name }), input, output);
    return { label, input, output };
  }

  function slider(name, properties, changed) {
    const made = field(name, element("input", { type: "range", ...properties }));
    made.input.addEventListener("input", () => changed(Number(made.input.value)));
    made.show = (value, text) => {
      Object.assign(made.input, { value });
      made.input.setAttribute("aria-valuetext", text);
      made.output.textContent = text;
    };
    return made;
  }

  function choice(name, options, changed) {
    const made = field(name, element("select", {}, ...options.map((text, value) => new Option(text, value))));
    made.input.addEventListener("change", () => changed(Number(made.input.value)));
    made.label.hidden = options.length === 1;
    return made;
  }

  const axisChoice = choice("axis", scene.axes.map((axis) => axis.name), (axis) => {
    restsAt[geometry().axis] = geometry().index;
    set({ axis, slice: restsAt[axis] });
  });
  const sliceSlider = slider("slice", { min: 0, step: 1 }, goTo);
  sliceSlider.label.hidden = scene.axes.length === 1;
  const channelChoice = choice("channel", scene.channels.map((channel) => channel.name), (channel) => set({ channel }));
  const opacitySlider = slider("opacity", { min: 0, max: 1, step: 0.05 }, (opacity) => set({ opacity }));
  opacitySlider.label.hidden = layers.length === 0;
  const windowSlider = slider("window", {}, (value) => set({ window: withChannel("window", value) }));
  const levelSlider = slider("level", {}, (value) => set({ level: withChannel("level", value) }));
  const boxes = layers.map(({ name }) => {
    const box = element("input", { type: "checkbox", name });
    box.addEventListener("change", () => {
      const others = model.get("layers").filter((other) => other !== name);
      set({ layers: box.checked ? [...others, name] : others });
    });
    return box;
  });
  const toggles = element(
    "fieldset",
    { hidden: layers.length === 0 },
    element("legend", { textContent: "layers" }),
    ...boxes.map((box) => element("label", {}, box, ` ${box.name}`)),
  );
  const legend = scene.legend.map(({ name, colour, dice }) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = colour;
    const score = typeof dice === "number" ? `, Dice ${dice.toFixed(2)}` : "";
    return element("li", {}, swatch, name + score);
  });
  const moves = scene.axes.length === 1 ? "" : "Wheel, arrow keys, Page Up, Page Down, Home, End: another slice. ";
  const help = `${moves}Shift and arrow keys in the picture: read values, with Ctrl in longer steps.`;
  canvas.title = help;

  // ---- drawing
  function draw({ rows, columns, down, across, first }) {
    const channel = model.get("channel");
    const { low, high, step } = scene.channels[channel];
    const width = model.get("window")[channel];
    const dark = model.get("level")[channel] - width / 2;
    const brightness = new Uint8ClampedArray(Math.round((high - low) / step) + 1);
    for (let code = 0; code < brightness.length; code++) {
      brightness[code] = (255 * (low + step * code - dark)) / width;
    }
    const planes = volumes[channel];
    const [red, green, blue] = planes.length === 3 ? planes : [planes[0], planes[0], planes[0]];
    const visible = layers.filter(({ name }) => model.get("layers").includes(name));
    const seen = visible.map(() => new Uint8Array(256));
    const opacity = model.get("opacity") / 255;
    if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
    const context = canvas.getContext("2d");
    const picture = context.createImageData(columns, rows);
    const pixels = picture.data;
    let target = 0;
    for (let row = 0; row < rows; row++) {
      let index = first + row * down;
      for (let column = 0; column < columns; column++, index += across, target += 4) {
        let r = brightness[red[index]];
        let g = brightness[green[index]];
        let b = brightness[blue[index]];
        for (let number = 0; number < visible.length; number++) {
          const value = visible[number].values[index];
          if (value === 0) continue;
          seen[number][value] = 1;
          const table = visible[number].table;
          const share = opacity * table[4 * value + 3];
          r += share * (table[4 * value] - r);
          g += share * (table[4 * value + 1] - g);
          b += share * (table[4 * value + 2] - b);
        }
        pixels[target] = r;
        pixels[target + 1] = g;
        pixels[target + 2] = b;
        pixels[target + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
    if (marked) {
      for (const [colour, reach] of [["black", 3], ["white", 2]]) {
        context.strokeStyle = colour;
        context.strokeRect(mark[1] + 0.5 - reach, mark[0] + 0.5 - reach, 2 * reach, 2 * reach);
      }
    }
    return visible.map(({ name, names }, number) => {
      const found = Object.keys(names).filter((value) => seen[number][value]);
      return Object.keys(names).length ? `${name}: ${found.map((value) => names[value]).join(", ") || "nothing"}` : "";
    });
  }

  function read({ rows, columns, down, across, first }) {
    if (!mark) return "";
    const [row, column] = [Math.min(mark[0], rows - 1), Math.min(mark[1], columns - 1)];
    const index = first + row * down + column * across;
    const where = ["z", "y", "x"]
      .map((name, axis) => `${name} ${words((Math.floor(index / strides[axis]) % shape[axis]) * spacing[axis])}`)
      .slice(scene.axes.length === 1 ? 1 : 0);
    const { name, low, step } = scene.channels[model.get("channel")];
    const values = volumes[model.get("channel")].map((plane) => words(low + step * plane[index]));
    const labels = layers.map(({ name, names, step, values }) => {
      const text = step ? words(step * values[index]) : names[values[index]];
      return text ? `; ${name}: ${text}` : "";
    });
    return `${where.join(", ")} ${unit}; ${name}: ${values.join(", ")}${labels.join("")}`;
  }

  function update() {
    const view = geometry();
    const { axis, index, rest, rows, columns } = view;
    const found = draw(view).filter((text) => text);
    const [height, width] = [rows * spacing[rest[0]], columns * spacing[rest[1]]];
    canvas.style.width = `${(LONGEST * width) / Math.max(width, height)}px`;
    canvas.style.aspectRatio = `${width} / ${height}`;
    const count = `${index + 1} of ${shape[axis]}`;
    const where = `slice ${count}, ${scene.axes[axis].name} ${words(index * spacing[axis])} ${unit}`;
    const said = [...(scene.axes.length === 1 ? [] : [where]), ...found].join("; ");
    if (said !== place.textContent) place.textContent = said; // or screen readers would say it again
    reading.textContent = read(view);
    axisChoice.input.value = axis;
    sliceSlider.input.max = shape[axis] - 1;
    sliceSlider.show(index, count);
    const channel = model.get("channel");
    channelChoice.input.value = channel;
    opacitySlider.show(model.get("opacity"), words(model.get("opacity")));
    const { low, high } = scene.channels[channel];
    const step = (high - low) / 200 || 1;
    Object.assign(windowSlider.input, { min: step, max: high - low, step });
    Object.assign(levelSlider.input, { min: low, max: high, step });
    windowSlider.show(model.get("window")[channel], words(model.get("window")[channel]));
    levelSlider.show(model.get("level")[channel], words(model.get("level")[channel]));
    const visible = model.get("layers");
    boxes.forEach((box) => Object.assign(box, { checked: visible.includes(box.name) }));
    legend.forEach((line, number) => {
      const { layer } = scene.legend[number];
      line.hidden = Boolean(layer) && !visible.includes(layer);
    });
  }

  // ---- mouse and keyboard in the picture
  let travel = 0;
  canvas.addEventListener(
    "wheel",
    (event) => {
      const { axis, index } = geometry();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) return; // sideways the page scrolls
      if (index === (event.deltaY < 0 ? shape[axis] - 1 : 0)) return; // at the end of the stack the page scrolls
      event.preventDefault();
      travel += event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : NOTCH);
      if (Math.abs(travel) < NOTCH) return;
      goTo(index - Math.sign(travel));
      travel = 0;
    },
    { passive: false },
  );
  canvas.addEventListener("pointermove", (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const inside = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
    mark = [
      inside((event.clientY - top) / height, canvas.height),
      inside((event.clientX - left) / width, canvas.width),
    ];
    if (marked) {
      marked = false;
      update(); // without the keyboard's mark
    }
    reading.textContent = read(geometry());
  });
  canvas.addEventListener("keydown", (event) => {
    const { axis, index, rows, columns } = geometry();
    const arrow = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const slices = {
      ...{ ArrowUp: index + 1, ArrowRight: index + 1, ArrowDown: index - 1, ArrowLeft: index - 1 },
      ...{ PageUp: index + LEAP, PageDown: index - LEAP, Home: 0, End: shape[axis] - 1 },
    };
    if (event.shiftKey && arrow) {
      const step = event.ctrlKey ? LONG_WAY : 1;
      const [row, column] = mark ?? [rows >> 1, columns >> 1];
      const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
      mark = [inside(row + step * arrow[0], rows), inside(column + step * arrow[1], columns)];
      marked = true;
      update();
    } else if (event.key in slices && !event.altKey && !event.ctrlKey && !event.metaKey) {
      goTo(slices[event.key]);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });

  const controls = [axisChoice, sliceSlider, channelChoice, opacitySlider, windowSlider, levelSlider];
  const root = element(
    "div",
    { className: "lab-slicer" },
    element("style", { textContent: STYLE }),
    element("figure", {}, element("p", { className: "title", textContent: scene.title }), canvas, place, reading),
    element(
      "div",
      { className: "controls" },
      ...controls.map(({ label }) => label),
      toggles,
      element("ul", {}, ...legend),
      element("p", { textContent: help }),
      element("p", { textContent: scene.credit }),
    ),
  );
  root.querySelector("ul").setAttribute("aria-label", "legend");
  // JupyterLab would take arrow keys, and letters too, as commands to the notebook.
  for (const node of root.querySelectorAll("canvas, input, select")) node.dataset.lmSuppressShortcuts = "true";
  for (const name of ["axis", "slice", "channel", "opacity", "window", "level", "layers"]) {
    model.on(`change:${name}`, update);
  }
  el.append(root);
  update();
}

export default { render };
