"""What was measured, as people read it: a table of values, one of ratios, and bars."""

# Metric, how it is named, its unit, and digits. Of those in MB/s and 1/s more is better.
METRICS = [
    ("cpu", "CPU per session", "ms", 2),
    ("rate", "sessions, 4 clients", "1/s", 0),
    ("greeting", "connect to greeting", "ms", 2),
    ("open", "PASS to STAT, first", "s", 3),
    ("again", "the same, next session", "ms", 1),
    ("list", "LIST", "ms", 1),
    ("uidl", "UIDL", "ms", 1),
    ("large", "RETR, one of 100 MB", "MB/s", 0),
    ("single", "RETR, one by one", "MB/s", 1),
    ("windows", "RETR, windows of 50", "MB/s", 1),
    ("delete", "QUIT after DELE 1", "ms", 0),
    ("idle", "PSS of an idle session", "MiB", 2),
    ("huge", "PSS of one after LIST", "MiB", 1),
]
MORE_IS_BETTER = ("1/s", "MB/s")
OURS = "tpop3d listener"
NOTHING = "nothing"  # no server: only in the table, where it tells what the clients can do
NAME = 31  # columns
VALUE = 11


def table(medians, quick):
    """Values, and below them how many times the listener's each one is."""
    lines = [_row("", [server.split() for server in medians])]
    for metric, name, unit, digits in METRICS:
        values = [medians[server].get(metric) for server in medians]
        cells = [["-" if value is None else f"{value:,.{digits}f}"] for value in values]
        lines.append(_row(f"{name}, {unit}", cells))
    ours = medians.get(OURS)
    if ours:
        lines += ["", f"as a multiple of {OURS}:"]
        for metric, name, unit, _ in METRICS:
            values = [medians[server].get(metric) for server in medians]
            if ours.get(metric) and any(values):
                cells = [["-" if not value else f"{value / ours[metric]:,.2f}"] for value in values]
                better = "more" if unit in MORE_IS_BETTER else "less"
                lines.append(_row(f"{name} ({better} is better)", cells))
    if quick:
        lines += ["", "quick: of everything large only a tenth"]
    return "\n".join(lines)


def _row(name, cells):
    height = max(len(sandbox) for sandbox in cells)
    lines = []
    for number in range(height):
        texts = [sandbox[number] if number < len(sandbox) else "" for sandbox in cells]
        first = name if number == 0 else ""
        lines.append(f"{first:{NAME}}" + "".join(f"{text:>{VALUE}}" for text in texts))
    return "\n".join(line.rstrip() for line in lines)


def chart(medians, path):
    """Bars for each metric, a panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "tpop3d"}
    servers = [server for server in medians if server != NOTHING]
    figure, axes = pyplot.subplots(4, 4, figsize=(14, 10), layout="constrained")
    colors = ["#1f77b4" if server.startswith("tpop3d") else "#aaaaaa" for server in servers]
    for panel, (metric, name, unit, digits) in zip(axes.flat, METRICS, strict=False):
        values = [medians[server].get(metric) or 0 for server in servers]
        bars = panel.barh(servers[::-1], values[::-1], color=colors[::-1])
        texts = [f"{value:,.{digits}f}" if value else "-" for value in values[::-1]]
        panel.bar_label(bars, texts, padding=3, fontsize=7)
        if max(values) > 20 * (sorted(values)[len(values) // 2] or 1):
            panel.set_xscale("log")
        better = "more" if unit in MORE_IS_BETTER else "less"
        panel.set_title(f"{name}, {unit} ({better} is better)", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.margins(x=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[len(METRICS) :]:
        panel.set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
