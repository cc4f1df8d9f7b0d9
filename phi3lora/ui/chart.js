// A chart of curves, drawn as SVG.
