"""Summary of a GPU session on two screens: at most 9,000 characters."""

from collections.abc import Iterable
from typing import Any

LIMIT = 9000
_FAILURES, _KERNELS = 3400, 2400
"""Maximum number of characters; times get the rest."""
_SLOWEST = 20


def failed(row: dict[str, Any]) -> bool:
    """Return whether a row reports a failure."""
    return "raised" in row or row.get("holds") is False


def line_of(failure: dict[str, Any]) -> str:
    """Format a failure as one line."""
    known = ("part", "item", "holds", "raised", "report")
    if "raised" in failure:
        about = failure.get("item", "")
        return f"{failure['part']}: {about}: {failure['raised']}"
    facts = " ".join(
        f"{name}={_short(value)}" for name, value in failure.items() if name not in known
    )
    return f"{failure['part']}: {facts}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ",".join(f"{name}={_short(inner)}" for name, inner in value.items())
    return str(value)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the ratios of all rivals' times to each row of saefast."""
    return [
        {
            **row,
            "times_faster_than": {
                f"{other['rival']} {other['mode']}": round(other["ms"] / row["ms"], 2)
                for other in rows
                if other["rival"] != "saefast"
                and (other["case"], other["shape"]) == (row["case"], row["shape"])
            },
        }
        if row["rival"] == "saefast"
        else row
        for row in rows
    ]


def summary(result: dict[str, Any], limit: int = LIMIT) -> str:
    """Format parts, failures, slowest kernels, other tables and times, in that order."""
    sections = [
        _section("", [_machine(result), *map(_part, result["parts"])], limit),
        _section("FAILURES", map(line_of, result["failures"]), _FAILURES),
        _section("SLOWEST KERNELS", _kernels(result.get("kernels", [])), _KERNELS),
        _section("TILES, fastest of each", _tiles(result.get("tiles", [])), 700),
        _section("SANITIZER", map(_facts, result.get("sanitizer", [])), 500),
        _section("NCU", map(_facts, result.get("ncu", [])), 1000),
    ]
    head = "\n".join(section for section in sections if section)[:limit]
    return head + _section("\nTIMES", _times(result["rows"]), limit - len(head) - 1)


def _section(title: str, lines: Iterable[str], room: int) -> str:
    """Format as many lines as there is room for, and the number of those left out."""
    lines = [line[:200] for line in lines]
    if not lines or room < 80:
        return ""
    room -= len(title) + 1 + 40
    kept: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            kept.append(f"... and {len(lines) - len(kept)} more, in gpu.json")
            break
        kept.append(line)
    return "\n".join([title] * bool(title) + kept)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = machine.get("versions", {})
    names = " ".join(f"{name} {versions[name]}" for name in ("torch", "triton") if name in versions)
    backends = " ".join(f"{name}: {said}" for name, said in machine.get("backends", {}).items())
    device = machine.get("device", "no GPU was seen")
    return f"{device}, driver {machine.get('driver', '?')}, {names}, {result['commit']}; {backends}"


def _part(row: dict[str, Any]) -> str:
    return f"{row['part']:14} {row['seconds']:6.1f} s  {row['failures']} failures  {row['status']}"


def _kernels(rows: list[dict[str, Any]]) -> list[str]:
    timed = [row for row in rows if "ms" in row]
    slowest = sorted(timed, key=lambda row: -row["ms"])[:_SLOWEST]
    return [
        f"{row['profile']:5} {row['kernel'][:38]:38} {row['calls']:4}x {row['ms']:8.3f} ms"
        + _rate(row, "bytes_per_second", 1e-12, "TB/s")
        + _rate(row, "flops_per_second", 1e-12, "TFLOP/s")
        + (f" {row['floor_share']:6.1%} of its floor" if row.get("floor_share") else "")
        for row in slowest
    ]


def _rate(row: dict[str, Any], name: str, scale: float, unit: str) -> str:
    return f" {row[name] * scale:7.2f} {unit}" if row.get(name) else ""


def _tiles(rows: list[dict[str, Any]]) -> list[str]:
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted((row for row in rows if "ms" in row), key=lambda row: row["ms"]):
        best.setdefault((row["at"], row["product"]), row)
    return [f"{at} {product}: {row['tile']} {row['ms']} ms" for (at, product), row in best.items()]


def _facts(row: dict[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in row.items() if name != "report")


def _times(rows: list[dict[str, Any]]) -> list[str]:
    """Format saefast's times with ratios to the fastest rivals."""
    lines = []
    for row in with_ratios(rows):
        if row["rival"] != "saefast":
            continue
        shape = row["shape"]
        ratios = sorted(row["times_faster_than"].items(), key=lambda pair: pair[1])
        share = f" {row['floor_share']:4.0%} of floor" if row.get("floor_share") else ""
        lines.append(
            f"{row['case']:16} d={shape['d']} m={shape['m']} {row['mode'][:26]:26} "
            f"{row['ms']:9.3f} ms{share} "
            + ", ".join(f"{ratio}x {name}" for name, ratio in ratios[:3])
        )
    return lines
