// Pictures of one step of decoding: what was drafted, and what of it was kept.
import { svg } from "./dom.js";

const [COLUMN, ROW, HIGH, LETTER] = [112, 34, 24, 8]; // pixels

/**
 * A tree as SVG. `nodes`: [{text, parent, kept, own}] with the root first (parent -1); `own` marks what the model itself
 * wrote. Depth goes to the right.
 */
export function treePicture(nodes) {
  const depth = [];
  const row = [];
  nodes.forEach((node, i) => (depth[i] = node.parent < 0 ? 0 : depth[node.parent] + 1));
  let rows = 0;
  const place = (i) => {
    const children = nodes.flatMap((node, k) => (node.parent === i ? [k] : [])).sort((a, b) => nodes[b].kept - nodes[a].kept);
    row[i] = rows;
    children.forEach((child, k) => {
      if (k) rows++;
      place(child);
    });
  };
  place(0);
  const wide = (Math.max(...depth) + 1) * COLUMN;
  const high = (rows + 1) * ROW;
  const kept = nodes.filter((node) => node.kept).length;
  const picture = svg("svg", {
    viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, class: "tree", role: "img",
    "aria-label": `A step that drafted ${nodes.length - 1} tokens, of which ${kept} were kept`,
  });
  nodes.forEach((node, i) => {
    if (node.parent < 0) return;
    const [x, y] = [depth[i] * COLUMN, row[i] * ROW + HIGH / 2];
    const [px, py] = [depth[node.parent] * COLUMN + COLUMN - 16, row[node.parent] * ROW + HIGH / 2];
    picture.append(svg("path", { d: `M${px} ${py} C${px + 10} ${py} ${x - 10} ${y} ${x} ${y}`, class: node.kept ? "edge on" : "edge" }));
  });
  nodes.forEach((node, i) => picture.append(box(node, depth[i] * COLUMN, row[i] * ROW)));
  return picture;
}

function box(node, x, y) {
  const kind = node.own ? "own" : node.kept ? "kept" : "ghost";
  const most = Math.floor((COLUMN - 28) / LETTER);
  const text = node.text.replaceAll("\n", "⏎").trim() || "␣";
  const group = svg("g", { class: `node ${kind}`, transform: `translate(${x} ${y})` });
  group.append(
    svg("title", {}, `${text}: ${kind === "own" ? "the model's own" : kind === "kept" ? "drafted and kept" : "drafted, rejected"}`),
    svg("rect", { width: COLUMN - 16, height: HIGH, rx: 6 }),
    svg("text", { x: 8, y: HIGH / 2 + 5 }, text.length > most ? `${text.slice(0, most - 1)}…` : text),
  );
  return group;
}

/** A step of which only the kept and the rejected tokens are known: the kept as a chain, the first rejected beside its end. */
export function chainPicture({ tokens, rejected = [] }) {
  const drafted = tokens.filter((token) => token.drafted);
  const own = tokens.find((token) => !token.drafted);
  const nodes = [{ text: "so far", parent: -1, kept: true, own: true }];
  for (const token of drafted) nodes.push({ text: token.text, parent: nodes.length - 1, kept: true });
  const end = nodes.length - 1;
  if (own) nodes.push({ text: own.text, parent: end, kept: true, own: true });
  rejected.forEach((token, i) => nodes.push({ text: token.text, parent: i ? nodes.length - 1 : end, kept: false }));
  return treePicture(nodes);
}
