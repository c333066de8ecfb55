"""Every task is a mask: turns "which frames are known" into the network calls that make the others.

The network was trained on consecutive frames, past right before and future right behind the current ones, each group
seen whole or hidden whole; or, with `Masking.frames`, in part: then a group is available from one known frame on, next
to the current ones. The planner is greedy: it keeps choosing the best window of `current` consecutive frames that still
has an unknown frame, until there is none. Windows may stick out over either end of the video (the surplus is cut). The
best window has, in this order:

0. fewest seams: made frames at its edge beside a known frame that it neither sees nor overlaps;
1. most groups seen (a combination that training never showed is out; an available group is hidden only for that);
   then fewest hidden frames in groups that are seen in part;
2. with no group seen, most known frames inside (imposed), counted up to half a window: what is made is tied to what
   is there;
3. fewest imposed frames; among them frames made earlier rather than given ones (given ones serve better as a trained
   condition), but with no group seen given ones;
4. most frames made;
5. forward growth, earliest first, before backward growth, latest first; not sticking out where growth starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from mcvd.errors import McvdError
from mcvd.given import frame_flags
from mcvd.layout import BlockLayout, Masking
from mcvd.text import counted


@dataclass(frozen=True)
class Block:
    """One network call. Frame indices count from the video's first frame.

    past, future: frames seen; None is hidden.
    current: consecutive frames, which may run below 0 or beyond the end.
    made: per current frame, whether this block makes it.
    imposed: per current frame, whether it is known already, so that sampling replaces its x0 by the known value at
        every step. A frame neither made nor imposed is sampled and thrown away: it lies outside the video, or a
        later block makes it (see `advance` of `plan`).
    """

    past: tuple[int | None, ...]
    current: tuple[int, ...]
    future: tuple[int | None, ...]
    made: tuple[bool, ...]
    imposed: tuple[bool, ...]

    @property
    def past_seen(self) -> bool:
        """Whether any past frame is seen."""
        return any(i is not None for i in self.past)

    @property
    def future_seen(self) -> bool:
        """Whether any future frame is seen."""
        return any(i is not None for i in self.future)


_Score = tuple[int, ...]  # smaller is better; the window's start comes last


class _Planner:
    def __init__(self, known: Sequence[bool], layout: BlockLayout, masking: Masking, advance: int) -> None:
        self.given = [bool(flag) for flag in known]
        self.have = list(self.given)  # given, or made by a block so far
        self.layout, self.advance, self.in_part = layout, advance, masking.frames > 0.0
        self.combinations = masking.combinations(layout)
        # The most seen first, the past before the future.
        self.by_seen = sorted(self.combinations, key=lambda pair: (-sum(pair), not pair[0]))
        self.only_backward = not any(past for past, _ in self.by_seen) and any(future for _, future in self.by_seen)

    def window(self, start: int) -> tuple[_Score, Block] | None:
        """Scores the window; None if it has nothing to make, or only in a way that training never showed."""
        p, k, f, frames = self.layout.past, self.layout.current, self.layout.future, len(self.have)
        have, stop = self.have, start + self.layout.current
        inside = range(max(start, 0), min(stop, frames))
        unknown = [i for i in inside if not have[i]]
        if not unknown:
            return None
        before, behind = self._known_run(range(start - 1, start - p - 1, -1)), self._known_run(range(stop, stop + f))
        available = (0 < before >= (1 if self.in_part else p), 0 < behind >= (1 if self.in_part else f))
        seen = next((pair for pair in self.by_seen if pair[0] <= available[0] and pair[1] <= available[1]), None)
        if seen is None:
            return None

        past: list[int | None] = [i if seen[0] and i >= start - before else None for i in range(start - p, start)]
        future: list[int | None] = [i if seen[1] and i < stop + behind else None for i in range(stop, stop + f)]
        imposed = [i for i in inside if have[i]]
        links, enough = len(imposed), (k + 1) // 2
        if k == 1 and not any(seen):
            # One frame cannot overlap anything. Last resort: a group partly hidden, as in the published generation.
            self._see_partly(past, future, start)
            links, enough = sum(i is not None for i in past + future), max(p, f)
        sees_past, sees_future = any(i is not None for i in past), any(i is not None for i in future)

        if sees_past or sees_future:
            backward = not sees_past
        elif imposed:
            backward = have[inside[-1]] and not have[inside[0]]
        else:
            backward = self.only_backward
        kept = unknown[-self.advance :] if backward else unknown[: self.advance]
        seams = (start in kept and start > 0 and have[start - 1] and not sees_past) + (
            stop - 1 in kept and stop < frames and have[stop] and not sees_future
        )
        given = sum(self.given[i] for i in imposed)
        score = (
            seams,
            -sum(seen),
            seen[0] * (p - before) + seen[1] * (f - behind),
            0 if any(seen) else -min(links, enough),
            len(imposed),
            given if any(seen) else -given,
            -len(kept),
            backward,
            stop > frames if backward else start < 0,
            -start if backward else start,
        )
        made = tuple(i in kept for i in range(start, stop))
        fixed = tuple(i in imposed for i in range(start, stop))
        return score, Block(tuple(past), tuple(range(start, stop)), tuple(future), made, fixed)

    def _known_run(self, places: range) -> int:
        """How many frames at these places are known, up to the first that is not, or the video's end."""
        count = 0
        for i in places:
            if not (0 <= i < len(self.have) and self.have[i]):
                break
            count += 1
        return count

    def _see_partly(self, past: list[int | None], future: list[int | None], start: int) -> None:
        """Shows the known run right before the frame, or else the one right behind it, to a block of one frame."""
        if (True, False) in self.combinations:
            for i in range(start - 1, max(start - 1 - len(past), -1), -1):
                if not self.have[i]:
                    break
                past[i - start] = i
        if (False, True) in self.combinations and not any(i is not None for i in past):
            for i in range(start + 1, min(start + 1 + len(future), len(self.have))):
                if not self.have[i]:
                    break
                future[i - start - 1] = i

    def run(self) -> list[Block]:
        # A score depends only on the frames that a block touches and on its two neighbours, so all windows are scored
        # once, and after a block only those that touch what it made: linear in the video's length, and exact.
        p, k, f = self.layout.past, self.layout.current, self.layout.future
        best: dict[int, tuple[_Score, Block] | None] = {s: self.window(s) for s in range(1 - k, len(self.have))}
        heap = [(found[0], s) for s, found in best.items() if found]
        heapify(heap)
        blocks = []
        while heap:
            score, start = heappop(heap)
            found = best[start]
            if found is None or found[0] != score:
                continue  # scored again since
            block = found[1]
            blocks.append(block)
            made = [i for i, flag in zip(block.current, block.made) if flag]
            for i in made:
                self.have[i] = True
            for s in range(max(made[0] - k - max(f, 1) + 1, 1 - k), min(made[-1] + max(p, 1) + 1, len(self.have))):
                best[s] = again = self.window(s)
                if again:
                    heappush(heap, (again[0], s))
        return blocks


def plan(
    known: Sequence[bool], layout: BlockLayout, masking: Masking, *, advance: int | None = None
) -> tuple[Block, ...]:
    """Plans the blocks that make every unknown frame exactly once; each reads only frames known by then.

    known: one bool a frame of the video; all False is generation.
    masking: how the model was trained; only combinations of seen groups that training showed are planned, in part only
        where single frames were hidden. The one exception: with current == 1 a group may be seen in part, for a frame
        that would else be tied to nothing.
    advance: how many frames of each block are kept, in the direction of growth; all of them by default, 1 is the
        published `one_frame_at_a_time`.

    Raises McvdError when the model was never trained for what is asked, or an argument makes no sense.
    """
    flags = frame_flags(known)
    if flags.dim() != 1:
        raise McvdError(f"known has shape {tuple(flags.shape)}; it takes one flag for each frame")
    known = flags.tolist()
    if not known:
        raise McvdError("the video to plan has no frames")
    if advance is not None and not 1 <= advance <= layout.current:
        raise McvdError(f"advance={advance} must be between 1 and the {layout.current} frames that a block makes")
    planner = _Planner(known, layout, masking, advance or layout.current)
    blocks = planner.run()
    if not all(planner.have):
        raise McvdError(_cannot(planner.have, layout, planner.combinations))
    return tuple(blocks)


def _cannot(have: Sequence[bool], layout: BlockLayout, combinations: frozenset[tuple[bool, bool]]) -> str:
    """Says what the model was trained for, what it cannot make and what would work.

    A plan fails only where a needed group cannot be known. The greedy order is not to blame: frames that become known
    never take a window's groups away, so what could be made stays possible until it is made.
    """
    needs_past, needs_future = all(past for past, _ in combinations), all(future for _, future in combinations)
    first = list(have).index(False)
    last = next((i for i in range(first, len(have)) if have[i]), len(have)) - 1
    missing = f"frame {first}" if first == last else f"frames {first} to {last}"
    if needs_past and needs_future:
        saw = f"{layout.past} past and {counted(layout.future, 'future frame')}"
        remedy = f"give gaps of at most {counted(layout.current, 'frame')} with {counted(layout.past, 'known frame')}"
        remedy += f" right before each and {layout.future} right behind"
    elif needs_past:
        saw = counted(layout.past, "past frame")
        remedy = f"give at least {counted(layout.past, 'known frame')} in a row before that"
    else:
        saw = counted(layout.future, "future frame")
        remedy = f"give at least {counted(layout.future, 'known frame')} in a row behind that"
    return (
        f"this model always saw its {saw} in training, so it cannot make {missing}: {remedy}, "
        "or use a model trained with them hidden at random"
    )


_SYMBOLS = (
    ("#", "known"),
    ("<", "past seen"),
    (">", "future seen"),
    ("x", "hidden"),
    ("+", "made"),
    ("=", "imposed"),
    ("~", "thrown away"),
    (".", "not known, or not in use"),
)


def draw_plan(blocks: Sequence[Block], known: Sequence[bool]) -> str:
    """Draws the plan as text: a ruler, the known frames, one row a block, one column a frame, and a legend."""
    first = min([0, *(block.current[0] for block in blocks)])
    end = max([len(known), *(block.current[-1] + 1 for block in blocks)])
    label = max(len("known"), len(f"block {len(blocks)}"))
    ruler = [" "] * (end - first + 8)
    for i in range(0, len(known), 10):
        ruler[i - first : i - first + len(str(i))] = str(i)
    rows = [("frame", "".join(ruler)), ("known", " " * -first + "".join("#" if flag else "." for flag in known))]
    for number, block in enumerate(blocks, 1):
        row = [" "] * -first + ["."] * len(known) + [" "] * (end - len(known))
        start, stop = block.current[0], block.current[-1] + 1
        groups = ((start - len(block.past), block.past, "<"), (stop, block.future, ">"))
        for at, group, symbol in groups:
            for i, seen in enumerate(group, at):
                if 0 <= i < len(known):
                    row[i - first] = "x" if seen is None else symbol
        for i, made, imposed in zip(block.current, block.made, block.imposed):
            row[i - first] = "+" if made else "=" if imposed else "~"
        rows.append((f"block {number}", "".join(row)))
    lines = [f"{name:<{label}}  {row}".rstrip() for name, row in rows]
    used = set("".join(row for _, row in rows[1:]))
    return "\n".join([*lines, "   ".join(f"{symbol} {meaning}" for symbol, meaning in _SYMBOLS if symbol in used)])
