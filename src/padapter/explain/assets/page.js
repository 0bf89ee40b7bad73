"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const [width, height] = data.size;
  const picture = new Image();
  // Panes are as the picture is, but not so narrow that patches could not be seen, nor larger than a page needs.
  const ratio = Math.min(Math.max(width / height, 1 / 4), 4), stretched = ratio !== width / height;
  const longer = Math.max(width, height);
  const long = longer > 1024 ? 1024 : longer * Math.ceil(360 / longer);
  const [across, down] = (ratio < 1 ? [long * ratio, long] : [long, long / ratio]).map(Math.round);
  // Colours from nothing to the most: dark violet, red, orange, pale yellow.
  const stops = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
  const state = { token: -1, module: data.modules.length - 1, head: -1 };

  const colour = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    return stops[first].map((value, i) => value + (stops[first + 1][i] - value) * (place - first));
  };
  const bytes = (code) => Uint8Array.from(atob(code), (character) => character.charCodeAt(0));
  const percent = (share) =>
    share > 0 && share < 0.0005 ? "under 0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
  const off = (share) => (share > 0.0005 ? `padding ${percent(share)}` : "");
  const make = (tag, text, parent, name) => {
    const made = document.createElement(tag);
    if (text !== null) made.textContent = text;
    if (name) made.className = name;
    if (parent) parent.append(made);
    return made;
  };

  // One map per entry of `top`: numbers per patch, those of all views behind each other.
  const decode = (item) => {
    if (item.maps) return item.maps;
    const raw = bytes(item.data), each = raw.length / item.top.length;
    item.maps = item.top.map((top, n) => Float32Array.from(raw.subarray(n * each, (n + 1) * each), (v) => (v * top) / 255));
    return item.maps;
  };
  const sum = (maps) => maps[0].map((_, i) => maps.reduce((total, map) => total + map[i], 0));
  const mean = (maps) => sum(maps).map((value) => value / maps.length);

  // The number at a place of the picture: that of the patch it lies in, or between the middles of four.
  const at = (view, values, start, x, y, smooth) => {
    const [left, top, right, bottom] = view.box;
    const u = ((x - left) / (right - left)) * view.columns, v = ((y - top) / (bottom - top)) * view.rows;
    if (u < 0 || v < 0 || u >= view.columns || v >= view.rows) return null;
    const cell = (r, c) => values[start + Math.min(Math.max(r, 0), view.rows - 1) * view.columns + Math.min(Math.max(c, 0), view.columns - 1)];
    if (!smooth) return cell(Math.floor(v), Math.floor(u));
    const c = Math.floor(u - 0.5), r = Math.floor(v - 0.5), a = u - 0.5 - c, b = v - 0.5 - r;
    return (1 - b) * ((1 - a) * cell(r, c) + a * cell(r, c + 1)) + b * ((1 - a) * cell(r + 1, c) + a * cell(r + 1, c + 1));
  };
  const area = (view) => ((view.box[2] - view.box[0]) / view.columns) * ((view.box[3] - view.box[1]) / view.rows);
  // Relevance per pixel: where views overlap, it adds up. null: no view reaches here.
  const density = (views, values, x, y, smooth) => {
    let total = null, start = 0;
    for (const view of views) {
      const found = at(view, values, start, x, y, smooth);
      if (found !== null) total = (total || 0) + found / area(view);
      start += view.rows * view.columns;
    }
    return total;
  };
  // [number, area] of the patches on the picture; padding does not show and does not count.
  const shown = (views, values) => {
    let start = 0;
    const found = [];
    for (const view of views) {
      const [left, top, right, bottom] = view.box;
      const across = (right - left) / view.columns, down = (bottom - top) / view.rows;
      for (let i = 0; i < view.rows * view.columns; i++) {
        const x = left + (i % view.columns) * across, y = top + Math.floor(i / view.columns) * down;
        const shows = x + across > 0.5 && y + down > 0.5 && x < width - 0.5 && y < height - 0.5;
        if (shows) found.push([values[start + i], area(view)]);
      }
      start += view.rows * view.columns;
    }
    return found;
  };
  // What the brightest colour stands for.
  const most = (views, values) =>
    shown(views, values).reduce((top, [value, size]) => Math.max(top, value / size), 0) * (views.length > 1 ? 2 : 1);
  // A map is bright all over where attention is even; so the brightest patch is told beside what each would get then.
  const peak = (views, values) => {
    const found = shown(views, values).map(([value]) => value), all = found.reduce((a, b) => a + b, 0);
    return all > 0 ? `brightest patch ${percent(Math.max(...found))}, if even ${percent(all / found.length)}` : "";
  };

  const heat = (views, values, top, columns) => {
    const canvas = document.createElement("canvas");
    const smooth = $("smooth").checked;
    canvas.width = columns;
    canvas.height = Math.round(columns / ratio);
    const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
    for (let row = 0; row < canvas.height; row++) {
      for (let column = 0; column < canvas.width; column++) {
        const x = ((column + 0.5) / canvas.width) * width, y = ((row + 0.5) / canvas.height) * height;
        const value = density(views, values, x, y, smooth), i = 4 * (row * canvas.width + column);
        const shade = value === null ? [128, 128, 128] : colour(top > 0 ? value / top : 0);
        pixels.data.set([...shade, value === null ? 200 : 255], i);
      }
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  };
  const draw = (canvas, views, values, top, columns) => {
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = picture.width > canvas.width;
    context.filter = "grayscale(0.6)";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.globalAlpha = $("opacity").value / 100;
    context.imageSmoothingEnabled = $("smooth").checked;
    context.drawImage(heat(views, values, top, columns), 0, 0, canvas.width, canvas.height);
  };

  const pane = (parent, title, kind) => {
    const figure = make("figure", null, parent), caption = make("figcaption", title, figure);
    make("span", kind, caption);
    const canvas = make("canvas", null, figure), facts = make("p", "", figure, "facts");
    canvas.width = across;
    canvas.height = down;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}, ${kind}`);
    return { figure, canvas, facts };
  };
  const watch = (made, views, values, total, words) => {
    const rest = words.filter(Boolean).join("  ·  ");
    made.facts.textContent = rest;
    made.canvas.onmouseleave = () => { made.facts.textContent = rest; };
    made.canvas.onmousemove = (event) => {
      const box = made.canvas.getBoundingClientRect();
      const fit = Math.min(box.width / across, box.height / down);  // as of object-fit: contain
      const x = ((event.clientX - box.left - (box.width - fit * across) / 2) / (fit * across)) * width;
      const y = ((event.clientY - box.top - (box.height - fit * down) / 2) / (fit * down)) * height;
      let start = 0;
      const found = views.map((view) => {
        const value = at(view, values, start, x, y, false);
        start += view.rows * view.columns;
        return value;
      }).filter((value) => value !== null);
      made.facts.textContent = found.length && total > 0
        ? `this patch: ${found.map((value) => `${value.toPrecision(3)} (${percent(value / total)})`).join(", ")}`
        : "the model does not see this place";
    };
  };
  const paint = (items, views, columns) => {
    const tops = items.map((item) => most(views, item.values)), common = Math.max(...tops);
    items.forEach((item, i) => {
      draw(item.made.canvas, views, item.values, $("common").checked ? common : tops[i], columns);
      watch(item.made, views, item.values, item.values.reduce((a, b) => a + b, 0), item.words);
    });
  };

  const relevance = () => {
    const parent = $("relevance-panes");
    parent.replaceChildren();
    const plain = pane(parent, "picture", `${width} x ${height}${stretched ? ", stretched here" : ""}`).canvas.getContext("2d");
    plain.imageSmoothingEnabled = picture.width > plain.canvas.width;
    plain.drawImage(picture, 0, 0, plain.canvas.width, plain.canvas.height);
    const items = data.sides.map((side) => {
      const maps = decode(side), one = state.token;
      const values = one < 0 ? sum(maps) : maps[one];
      const words = one < 0 ? sum(side.wordRelevance) : side.wordRelevance[one];
      const made = pane(parent, side.title, "relevance");
      const total = (list) => (one < 0 ? list.reduce((a, b) => a + b, 0) : list[one]);
      const onPicture = total(side.sums), padding = total(side.padding), onWords = words.reduce((a, b) => a + b, 0);
      const line = make("p", null, made.figure, "words"), top = Math.max(...words, 1e-12);
      line.dir = "auto";
      side.words.forEach((word, i) => {
        const span = make("span", word, line);
        line.append(" ");
        span.style.background = `color-mix(in srgb, var(--m1) ${Math.round((55 * words[i]) / top)}%, transparent)`;
        span.title = words[i].toPrecision(3);
      });
      const all = onPicture + padding + onWords;
      const probability = one < 0 ? side.probability : side.probabilities[one];
      const chance = probability === null ? "" : `probability ${percent(probability)}`;
      const rests = [`rests on the picture ${percent(onPicture / all)}`, `on words ${percent(onWords / all)}`, off(padding / all)];
      return { made, values, words: [chance, ...(all > 0 ? rests : ["nothing raised it"])] };
    });
    paint(items, data.views, 160);
  };
  const chips = () => {
    const side = data.sides[data.sides.length - 1], parent = $("tokens");
    const names = side.tokens.length > 1 ? ["all", ...side.tokens] : side.tokens;
    make("span", side.tokens.length > 1 ? "of the answer" : "explained token", parent, "note");
    const buttons = names.map((name, i) => {
      const button = make("button", name, parent), token = side.tokens.length > 1 ? i - 1 : 0;
      button.type = "button";
      button.dir = "auto";
      button.onclick = () => {
        state.token = token;
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        relevance();
      };
      button.setAttribute("aria-pressed", String(i === 0));
      return button;
    });
    state.token = side.tokens.length > 1 ? -1 : 0;
  };

  const of = (item) => (state.head < 0 ? mean(decode(item)) : decode(item)[state.head]);
  const pick = (list) => (state.head < 0 ? list.reduce((a, b) => a + b, 0) / list.length : list[state.head]);
  const attention = () => {
    const module = data.modules[state.module], parent = $("attention-panes");
    $("module").textContent = module.name;
    parent.replaceChildren();
    const items = module.panes.map((item) => ({
      made: pane(parent, item.title, item.kind),
      values: of(item),
      words: [
        `on the picture ${percent(pick(item.sums))}`,
        peak(module.views, of(item)),
        item.own ? `own ${percent(pick(item.own))}` : "",
        off(pick(item.padding)),
      ],
    }));
    paint(items, module.views, 160);
    const heads = $("heads"), last = module.panes[module.panes.length - 1];
    heads.replaceChildren();
    $("whose").textContent = `${last.title}, ${last.kind}`;
    decode(last).forEach((values, head) => {
      const button = make("button", null, heads), canvas = make("canvas", null, button);
      canvas.width = 144;
      canvas.height = Math.round(144 / ratio);
      draw(canvas, module.views, values, most(module.views, values), 48);
      make("span", `head ${head}`, button);
      button.type = "button";
      button.setAttribute("aria-pressed", String(head === state.head));
      button.onclick = () => {
        state.head = state.head === head ? -1 : head;
        $("head").value = state.head;
        attention();
      };
    });
  };
  const options = () => {
    const select = $("head");
    select.replaceChildren();
    for (let head = -1; head < data.modules[state.module].heads; head++) {
      make("option", head < 0 ? "mean of all" : String(head), select).value = head;
    }
    select.value = state.head;
  };

  // The colours as they look on this picture: laid over its mean grey, as strongly as in the panes.
  const legend = () => {
    const one = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    one.filter = "grayscale(1)";
    one.drawImage(picture, 0, 0, 1, 1);
    const [grey] = one.getImageData(0, 0, 1, 1).data, share = $("opacity").value / 100;
    const ramp = $("ramp").getContext("2d");
    for (let x = 0; x < 120; x++) {
      const mixed = colour(x / 119).map((value) => Math.round(share * value + (1 - share) * grey));
      ramp.fillStyle = `rgb(${mixed.join(",")})`;
      ramp.fillRect(x, 0, 1, 10);
    }
  };
  const redraw = () => {
    legend();
    relevance();
    if (data.modules.length) attention();
  };
  picture.onload = () => {
    chips();
    if (data.modules.length) {
      options();
      $("layer").onchange = (event) => {
        state.module = Number(event.target.value);
        state.head = Math.min(state.head, data.modules[state.module].heads - 1);
        options();
        attention();
      };
      $("head").onchange = (event) => {
        state.head = Number(event.target.value);
        attention();
      };
    }
    for (const id of ["opacity", "smooth", "common"]) $(id).oninput = redraw;
    for (const form of document.forms) form.onsubmit = (event) => event.preventDefault();
    redraw();
    document.body.dataset.ready = "true";
  };
  picture.src = data.picture;
})();
