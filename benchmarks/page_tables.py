"""Tables of docs/benchmarks.md, each from the figures that a benchmark wrote to results/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ABSENT = "not measured"
RATIOS = {
    "fused_over_unfused": ("fused over unfused, block 8", 1.6),
    "one_step_over_ar": ("one step, block 8, over Hugging Face autoregressive", 5.0),
    "one_step_over_own_ar": ("one step, block 8, over own autoregressive", None),
    "batch8_over_1": ("8 reports together over one", 3.0),
    "over_plain_loop": ("over a plain loop over Hugging Face modules", 1.5),
}
BATCHED = "fused block 8, batch 8"
KINDS = ("products", "attention", "elementwise", "moving", "other")


def load(name: str) -> Any:
    """A result, or None."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def number(value: Any, digits: int = 0) -> str:
    """A figure or the median of a spread; a dash for None."""
    if value is None:
        return "–"
    return f"{value['median'] if isinstance(value, dict) else value:,.{digits}f}"


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, figures to the right."""
    rule = "|".join(["---", *["---:"] * (len(head) - 1)])
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def flow(result: Any) -> str:
    """The whole flow."""
    alone = result["one_at_a_time_last_image_to_delivered_without_quiet_period"]
    hops = result["hops_of_one_study_s"]
    model, delivery = hops["imaging.report.generated.v1"], hops["imaging.report.delivered.v1"]
    queueing = hops["imaging.report.requested.v1"] + hops["imaging.report.started.v1"]
    last = "last image to report accepted by the FHIR server, quiet period not counted, one study at a time"
    return grid(
        ["", "figure"],
        [
            [last, f"p50 {alone['p50_s']:.1f} s, p95 {alone['p95_s']:.1f} s"],
            ["of it, in one study", f"model {model:.1f} s, delivery {delivery:.1f} s, queueing {queueing:.1f} s"],
            [f"{result['studies']} studies at once", f"{result['burst_studies_per_hour']:,} studies an hour"],
            ["start of the whole process tree until ready", f"{result['start_to_ready_s']:.0f} s"],
        ],
    )


def ratios(result: Any) -> str:
    """The ratios with their targets on a CPU."""
    rows = []
    for name, (words, target) in RATIOS.items():
        ratio = result["ratios"].get(name)
        if ratio is None:
            rows.append([words, ABSENT, "", ""])
            continue
        spread = f"{ratio['min']:.1f} to {ratio['max']:.1f}"
        reached = "" if target is None else f"{target:g}, {'reached' if ratio['median'] >= target else 'missed'}"
        rows.append([words, f"{ratio['median']:.2f}", spread, reached])
    return grid(["tokens a second", "median", "range", "target"], rows)


def bench_rows(result: Any) -> str:
    """Every row of a bench."""
    rows = []
    for row in result["rows"]:
        speed, memory = row["tokens_per_second"], row["memory_bytes"]
        spread = "–" if speed is None else f"{number(speed['min'])} to {number(speed['max'])}"
        rows.append(
            [
                row["variant"],
                str(row["batch"]),
                number(row["ms_per_forward"], 2),
                number(speed),
                spread,
                number(row["tokens_per_forward"], 1),
                number(row["studies_per_second"], 1),
                number(None if memory is None else memory / 1e9, 1),
                "–" if row["floor"] is None else f"{100 * row['floor']['of_floor']:.0f} %",
            ]
        )
    head = ["", "batch", "ms a pass", "tokens/s", "range", "tokens a pass", "studies/s", "GB", "of floor"]
    text = grid(head, rows)
    left_out = [f"{row['variant']} at batch {row['batch']} ({row['reason']})" for row in result["skipped"]]
    if not result["complete"]:
        text += f"\n\nThis run was cut short after {result['repeats']} rounds."
    return text + (f"\n\nLeft out: {'; '.join(left_out)}." if left_out else "")


def passes(result: Any) -> str:
    """The profile of a pass."""
    alone = {entry["rows"]: entry["ms"] for entry in result["products"]}
    rows = []
    for name, entry in result["passes"].items():
        spent = entry["by_kind"]
        shares = [f"{100 * spent[kind] / sum(spent.values()):.0f} %" for kind in KINDS]
        figures = [number(entry["cpu_ms"], 1), number(alone.get(entry["rows"]), 1), *shares, number(entry["operators"])]
        rows.append([name, str(entry["rows"]), *figures])
    text = grid(["", "rows", "CPU ms", "products alone, ms", *KINDS, "operators"], rows)
    return text + (f"\n\n{result['note']}" if "note" in result else "")


def products(result: Any) -> str:
    """The matrix products by number of rows."""
    rows = [
        [
            str(entry["rows"]),
            number(entry["ms"], 2),
            number(entry["gflop_s"], 0),
            number(entry["ms"] / entry["rows"], 3),
        ]
        for entry in result["products"]
    ]
    return grid(["rows", "ms a pass", "GFLOP/s", "ms a row"], rows)


def bounds(result: Any) -> str:
    """What the products alone allow, and what the passes measured in one thread give."""
    alone = {entry["rows"]: entry["ms"] for entry in result["products"]}
    cost = {name: entry["cpu_ms"] for name, entry in result["passes"].items()}
    fused = cost["fused block 8"]
    rows = [
        ["fused over unfused", "2 x 8 rows / 16 rows", 2 * alone[8] / alone[16], 2 * cost["unfused block 8"] / fused],
        [
            "one step over own autoregressive",
            "8 x 1 row / 16 rows",
            8 * alone[1] / alone[16],
            8 * cost["autoregressive, own"] / fused,
        ],
        [
            "one step over Hugging Face autoregressive",
            "8 x 1 row / 16 rows",
            8 * alone[1] / alone[16],
            8 * cost["autoregressive, Hugging Face"] / fused,
        ],
        ["8 reports over one", "8 x 16 rows / 128 rows", 8 * alone[16] / alone[128], 8 * fused / cost[BATCHED]],
        ["over the plain loop", "16 rows / 16 rows", 1.0, cost["plain loop block 8"] / fused],
    ]
    return grid(
        ["ratio", "products of", "products alone", "CPU time measured"],
        [[words, terms, number(bound, 1), number(seen, 1)] for words, terms, bound, seen in rows],
    )


def guards(result: Any) -> str:
    """Defects put in on purpose, and what is found of them."""
    rows = [
        [kind, str(some["cases"]), f"{some['rate']:.1%}", f"{some['without_lexicon']:.1%}"]
        for kind, some in result["kinds"].items()
    ]
    rows.append(["all", str(result["cases"]), f"{result['detection']:.1%}", ""])
    text = grid(["defect", "cases", "found", "without a lexicon"], rows)
    return f"{text}\n\nGood texts flagged: {result['false_alarms']} of {result['good_texts']:,}."


def rails(result: Any) -> str:
    """What the gate and second attempts cost and gain, as the model ships."""
    return _rails(result, "as_shipped", "as shipped")


def forced(result: Any) -> str:
    """The same for a model that is forced to one step."""
    return _rails(result, "one_step", "forced to one step")


def _rails(result: Any, name: str, words: str) -> str:
    decoding = result.get("decoding")
    if decoding is None:
        return ABSENT
    rows = []
    for rail, row in decoding[name].items():
        share = (row["garbled_rate"], row["garbled_removed"], row["agrees"])
        cost = (row["gated_fraction"], row["redenoised_fraction"], row["more_forward_passes"])
        figures = [f"{value:.1%}" for value in (*share, *cost)]
        rows.append([f"{words}, {rail}", *figures, number(row["tokens_per_forward"], 2)])
    head = ["", "garbled", "removed", "agrees", "gated", "anew", "more passes", "tokens a pass"]
    return grid(head, rows)


def variants(result: Any) -> str:
    """Every way to fewer steps, mean over the seeds with lowest and highest where they differ."""
    columns = (
        ("macro_f1", "F1", 3),
        ("rouge_l", "ROUGE-L", 3),
        ("cider", "CIDEr", 2),
        ("garbled_rate", "garbled", 3),
        ("perplexity", "perplexity", 2),
        ("tokens_per_forward", "tokens a pass", 2),
        ("tokens_per_second", "tokens/s", 0),
        ("speed_up", "over AR", 2),
    )

    def cell(figure: Any, digits: int) -> str:
        low, high = (f"{figure[end]:.{digits}f}" for end in ("min", "max"))
        return f"{figure['mean']:.{digits}f}" + ("" if low == high else f" ({low} to {high})")

    rows = [
        [row["title"], *(cell(row["figures"][key], digits) for key, _, digits in columns)] for row in result["rows"]
    ]
    return grid(["", *(head for _, head, _ in columns)], rows)


def claims(result: Any) -> str:
    """What the figures say about each claim: gains of every seed, positive for the claim."""
    rows = []
    for claim in result["claims"]:
        gains = "; ".join(
            f"{name.replace('_', ' ')} {', '.join(f'{gain:+.3f}' for gain in some)}"
            for name, some in claim.get("gains", {}).items()
        )
        rows.append([claim["claim"], claim["verdict"], gains or "–"])
    return grid(["claim", "by our figures", "gains, one a seed"], rows)


def rad(result: Any) -> str:
    """Attention under RAD against a copy of the whole sequence, counted and measured."""
    rows = []
    counted = {
        "whole": "every pair",
        "tiled": f"tiles of {result['tile']} that hold an allowed pair",
        "allowed": "allowed",
    }
    for kind, words in counted.items():
        rad, whole = (result["counted"][layout][kind] for layout in ("rad", "duplicated"))
        rows.append([f"pairs counted: {words}", f"{rad:,}", f"{whole:,}", f"{whole / rad:.2f}", ""])
    for kernel, times in result["measured"].items():
        spread = f"{times['ratio']['min']:.2f} to {times['ratio']['max']:.2f}"
        figures = [number(times[name]) for name in ("rad", "duplicated")]
        rows.append([f"CPU ms: `{kernel}`", *figures, number(times["ratio"], 2), spread])
    return grid(["", "RAD", "whole copy", "ratio", "range"], rows)


def growth(result: Any) -> str:
    """One more study among few and among many, of each service on each database."""
    rows = []
    for engine, services in result["engines"].items():
        for service, figures in services.items():
            whole, counts = figures["study"]["whole"], figures["studies"]
            parts = [
                (whole[size]["median"], whole[size]["p5"], whole[size]["p95"]) for size in ("small_ms", "large_ms")
            ]
            tables = figures["tables"].values()
            million = counts["large"] * 1e3  # bytes a study to GB a million
            disk = [sum(table.get(kind, 0) for table in tables) / million for kind in ("table_bytes", "index_bytes")]
            rows.append(
                [
                    f"{service}, {'PostgreSQL' if engine == 'postgresql' else 'SQLite'}",
                    f"{counts['large']:,}",
                    *(f"{median:.0f} ({low:.0f} to {high:.0f})" for median, low, high in parts),
                    f"{figures['ratio']:.2f}",
                    f"{whole['large_ms']['p5'] / whole['small_ms']['p5']:.2f}",
                    *(number(size, 1) for size in disk),
                ]
            )
    few = next(iter(next(iter(result["engines"].values())).values()))["studies"]["small"]
    head = [
        "",
        "studies",
        f"ms with {few:,}",
        "ms with all",
        "ratio",
        "of 5th percentiles",
        "GB of tables a million",
        "GB of indices",
    ]
    return grid(head, rows)


def growth_looks(result: Any) -> str:
    """The looks whose cost grew the most."""
    rows = [
        [f"{service}, {engine}: {name.replace('_', ' ')}", look["small_ms"], look["large_ms"], look["ratio"]]
        for engine, services in result["engines"].items()
        for service, figures in services.items()
        for name, look in figures["looks"].items()
    ]
    most = sorted(rows, key=lambda row: -row[3])[:6]
    cells = [[name, number(few, 1), number(many, 1), number(ratio, 1)] for name, few, many, ratio in most]
    return grid(["", "ms with few", "ms with many", "ratio"], cells)


def retention(result: Any) -> str:
    """Receiving while retention deletes."""
    rows = []
    for engine, services in result["engines"].items():
        figures = services.get("dicom_listener", {}).get("retention")
        if figures is None:
            continue
        for words, key in (("alone", "record_alone_ms"), ("while deleting", "record_while_deleting_ms")):
            rows.append([f"{engine}, {words}", *(number(figures[key][name], 0) for name in ("median", "p95", "max"))])
    return grid(["ms to record an object", "median", "95th percentile", "longest"], rows)


def receive(result: Any) -> str:
    """Objects received by each receiver, by their size and the number of associations."""
    head = ["objects, associations", "receiver", "MB/s", "objects/s", "its CPU seconds"]
    return grid(
        head,
        [
            [
                f"{row['objects']}, {row['associations']}",
                row["receiver"],
                number(row["mb_per_s"], 0),
                number(row["objects_per_s"], 1),
                number(row["receiver_cpu_s"], 1),
            ]
            for row in result["rows"]
        ],
    )


def load_hops(result: Any) -> str:
    """Seconds to a report in and outside the burst, and where they go."""
    rows = [
        [words, *(number(result[key][name], 2) if result[key] else "–" for name in ("p50_s", "p95_s", "max_s"))]
        for words, key in (("outside the burst", "outside_the_burst"), ("of the burst", "in_the_burst"))
    ]
    hops = result["hops_outside_the_burst_mean_s"]
    return "\n\n".join(
        [
            grid(["last image to report accepted, s", "median", "95th percentile", "longest"], rows),
            grid(["mean s of a hop, outside the burst", ""], [[name, f"{s:.2f}"] for name, s in hops.items()]),
        ]
    )


def soak(result: Any) -> str:
    """Means of each window after the warm-up: speed, memory of all processes and of each, threads, descriptors."""
    head = ["from minute", "objects/s", "memory, MiB", "of the listener", "of each receiving process"]
    return grid(
        [*head, "threads", "descriptors"],
        [
            [
                f"{window['from_s'] / 60:.1f}",
                number(window["objects_per_s"], 1),
                number(window["pss_kib"] / 1024, 1),
                number(window["pss_kib_each"][0] / 1024, 1),
                " + ".join(number(kib / 1024, 1) for kib in window["pss_kib_each"][1:]),
                number(window["threads"]),
                number(window["descriptors"]),
            ]
            for window in result["windows"]
        ],
    )


TABLES: dict[str, Callable[[Any], str]] = {
    "flow": flow,
    "ratios": ratios,
    "rows": bench_rows,
    "passes": passes,
    "products": products,
    "bounds": bounds,
    "guards": guards,
    "rails": rails,
    "forced": forced,
    "growth": growth,
    "growth_looks": growth_looks,
    "retention": retention,
    "rad": rad,
    "receive": receive,
    "load": load_hops,
    "soak": soak,
}
