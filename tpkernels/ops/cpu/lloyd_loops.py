"""K-Means and K-Medoids as compiled loops, one sample at a time.

Imported where they are called, since numba need not be there. What a loop calls stands in its file: numba looks at that
file alone to see whether a loop that it has stored is still the same.
"""

from __future__ import annotations

from typing import Any

from . import jit

np: Any = jit.numpy()


@jit.jit
def sort_members(label: Any, k: int, order: Any, begin: Any) -> None:
    """Members of cluster c ascending in order[begin[c]:begin[c + 1]]; begin holds k + 1 places, label -1 none."""
    begin[: k + 1] = 0
    for i in range(len(label)):
        if label[i] >= 0:
            begin[label[i] + 1] += 1
    for c in range(k):
        begin[c + 1] += begin[c]
    for i in range(len(label)):
        if label[i] >= 0:
            order[begin[label[i]]] = i
            begin[label[i]] += 1
    for c in range(k, 0, -1):
        begin[c] = begin[c - 1]
    begin[0] = 0


@jit.jit
def add(share: Any, row: Any, total: Any) -> None:
    """Adds share times row to total."""
    for j in range(len(total)):
        total[j] += share * row[j]


@jit.jit
def sqdist(a: Any, b: Any) -> Any:
    """||a - b||^2."""
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += (a[j] - b[j]) * (a[j] - b[j])
    return total


@jit.jit
def shares(weight: Any, members: Any, share: Any) -> None:
    """What each member counts of its cluster; all alike where the weights sum to 0."""
    mass, one = weight.dtype.type(0), weight.dtype.type(1)
    for place in range(len(members)):
        mass += weight[members[place]]
    for place in range(len(members)):
        share[place] = weight[members[place]] / mass if mass > 0 else one / weight.dtype.type(len(members))


@jit.jit
def weighted_mean(rows: Any, weight: Any, members: Any, share: Any, mean: Any) -> None:
    """Writes the mean of the members' rows, and what each counts in it."""
    shares(weight, members, share)
    mean[:] = 0
    for place in range(len(members)):
        add(share[place], rows[members[place]], mean)


@jit.jit
def medoid_of(x: Any, weight: Any, members: Any, tie: float, share: Any, mean: Any) -> int:
    """The member nearest to the weighted mean, the lowest of those that are tied."""
    slack = x.dtype.type(1) + x.dtype.type(tie)
    if len(members) == 1:
        return members[0]
    if len(members) == 2:
        # Their costs are in the ratio of the squared weights; equal tokens have none.
        a, b = members[0], members[1]
        return b if weight[b] > weight[a] * np.sqrt(slack) and sqdist(x[a], x[b]) > 0 else a
    weighted_mean(x, weight, members, share, mean)
    least = x.dtype.type(np.inf)
    for place in range(len(members)):
        share[place] = sqdist(x[members[place]], mean)
        least = min(least, share[place])
    for place in range(len(members)):
        if share[place] <= least * slack:
            return members[place]
    return members[0]


@jit.jit
def nearest_members(x: Any, weights: Any, labels: Any, out: Any, tie: float, first: int, last: int) -> None:
    """`pooling_compiled.nearest_members`."""
    n, d = x.shape[1:]
    k = out.shape[1]
    order, begin = np.empty(n, np.int64), np.empty(k + 1, np.int64)
    share, mean = np.empty(n, x.dtype), np.empty(d, x.dtype)
    for s in range(first, last):
        sort_members(labels[s], k, order, begin)
        for c in range(k):
            members = order[begin[c] : begin[c + 1]]
            out[s, c] = medoid_of(x[s], weights[s], members, tie, share, mean) if len(members) > 0 else n


@jit.jit
def assign(table: Any, at: int, place: Any, half: Any, k: int, best: Any, label: Any) -> None:
    """The slot c < k of least `half[c] - table[place[c], at + i]` for every label i, the lowest on ties."""
    best[:] = np.inf
    label[:] = 0
    for slot in range(0, k, 4):
        # Four slots to one pass over best and label. The last one, repeated, is never below itself.
        b, c, d = min(slot + 1, k - 1), min(slot + 2, k - 1), min(slot + 3, k - 1)
        a_half, b_half, c_half, d_half = half[slot], half[b], half[c], half[d]
        a_row, b_row = table[place[slot]][at : at + len(best)], table[place[b]][at : at + len(best)]
        c_row, d_row = table[place[c]][at : at + len(best)], table[place[d]][at : at + len(best)]
        a_slot, b_slot, c_slot, d_slot = np.int32(slot), np.int32(b), np.int32(c), np.int32(d)
        for i in range(len(best)):
            least, owner = best[i], label[i]
            score = a_half - a_row[i]
            owner, least = (a_slot, score) if score < least else (owner, least)
            score = b_half - b_row[i]
            owner, least = (b_slot, score) if score < least else (owner, least)
            score = c_half - c_row[i]
            owner, least = (c_slot, score) if score < least else (owner, least)
            score = d_half - d_row[i]
            owner, least = (d_slot, score) if score < least else (owner, least)
            best[i], label[i] = least, owner


@jit.jit
def take(fresh: Any, there: Any, label: Any, changed: Any) -> bool:
    """Writes fresh labels into label, marks the clusters that lost or won a token; whether any did."""
    moved = False
    for i in range(len(label)):
        new = fresh[i] if there[i] else -1
        if new != label[i]:
            moved = True
            if label[i] >= 0:
                changed[label[i]] = True
            if new >= 0:
                changed[new] = True
            label[i] = new
    return moved


@jit.jit
def number(label: Any, k: int, new: Any) -> None:
    """new [k]: the rank of every slot by its lowest token, empty ones last in their own order."""
    new[:k] = -1
    count = 0
    for i in range(len(label)):
        if label[i] >= 0 and new[label[i]] < 0:
            new[label[i]] = count
            count += 1
    for c in range(k):
        if new[c] < 0:
            new[c] = count
            count += 1


@jit.jit
def renumber(label: Any, new: Any) -> None:
    """Gives labels their new numbers; -1 stays."""
    for i in range(len(label)):
        if label[i] >= 0:
            label[i] = new[label[i]]


@jit.jit
def kmedoids(
    grams: Any, tokens: Any, weights: Any, valid: Any, wanted: Any, labels: Any, medoids: Any, n_iter: Any,
    max_iter: int, tie: float, first: int, last: int,
) -> None:  # fmt: skip
    """`lloyd_compiled.kmedoids`: labels come as the start's; a sample with nothing wanted stays as it is."""
    n, d = tokens.shape[1:]
    width = medoids.shape[1]
    order, begin, new = np.empty(n, np.int64), np.empty(width + 1, np.int64), np.empty(width, np.int64)
    share, mean, best = np.empty(n, tokens.dtype), np.empty(d, tokens.dtype), np.empty(n, tokens.dtype)
    fresh, changed, half = np.empty(n, np.int32), np.empty(width, np.bool_), np.empty(width, tokens.dtype)
    medoid, place = np.empty(width, np.int64), np.empty(width, np.int64)
    for s in range(first, last):
        k, gram, label = wanted[s], grams[s], labels[s]
        if k == 0:
            continue
        # A slot without a token to start from takes none.
        medoid[:] = n
        place[:] = 0
        half[:] = np.inf
        changed[:] = True
        for turn in range(max_iter + 1):
            sort_members(label, k, order, begin)
            for c in range(k):
                members = order[begin[c] : begin[c + 1]]
                if changed[c] and len(members) > 0:
                    medoid[c] = medoid_of(tokens[s], weights[s], members, tie, share, mean)
                    place[c] = medoid[c]
                    half[c] = gram[medoid[c], medoid[c]] * tokens.dtype.type(0.5)
            assign(gram, 0, place, half, k, best, fresh)
            for c in range(k):
                # Among equal tokens too, a medoid belongs to its own cluster.
                if medoid[c] < n:
                    fresh[medoid[c]] = c
            changed[:] = False
            if not take(fresh, valid[s], label, changed) and turn > 0:
                break
            n_iter[s] = min(turn + 1, max_iter)
        number(label, k, new)
        renumber(label, new)
        for c in range(k):
            medoids[s, new[c]] = medoid[c]


@jit.jit
def centre_of(c: int, label: Any, x: Any, weight: Any, centre: Any) -> None:
    """Writes the weighted mean of the tokens with label c into centre [D]."""
    mass, count = centre.dtype.type(0), centre.dtype.type(0)
    for i in range(len(label)):
        if label[i] == c:
            mass += weight[i]
            count += centre.dtype.type(1)
    centre[:] = 0
    for i in range(len(label)):
        if label[i] == c:
            add(weight[i] / mass if mass > 0 else centre.dtype.type(1) / count, x[i], centre)


@jit.jit
def kmeans(
    grams: Any, tokens: Any, weights: Any, valid: Any, wanted: Any, labels: Any, sources: Any, kept: Any, lost: Any,
    n_iter: Any, max_iter: int, first: int, last: int,
) -> None:  # fmt: skip
    """`lloyd_compiled.kmeans`: labels and sources come as the start's; a sample with nothing wanted stays as it is."""
    n = tokens.shape[1]
    width, d = kept.shape[1:]
    order, begin, new = np.empty(n, np.int64), np.empty(width + 1, np.int64), np.empty(width, np.int64)
    share, best = np.empty(n, tokens.dtype), np.empty(n, tokens.dtype)
    rows, half, place = np.empty((width, n), tokens.dtype), np.empty(width, tokens.dtype), np.arange(width)
    # Of clusters that lost their members: rows and half are all that the iterations need.
    centre = np.empty((width, d), tokens.dtype)
    fresh, changed = np.empty(n, np.int32), np.empty(width, np.bool_)
    for s in range(first, last):
        k, gram, label, source, weight = wanted[s], grams[s], labels[s], sources[s], weights[s]
        if k == 0:
            continue
        changed[:] = True
        half[:] = np.inf
        for turn in range(max_iter + 1):
            sort_members(label, k, order, begin)
            for c in range(k):
                members = order[begin[c] : begin[c + 1]]
                if changed[c] and len(members) > 0:
                    weighted_mean(gram, weight, members, share, rows[c])
                    norm = tokens.dtype.type(0)
                    for at in range(len(members)):
                        norm += share[at] * rows[c, members[at]]
                    half[c] = norm * tokens.dtype.type(0.5)
                elif changed[c]:
                    centre_of(c, source, tokens[s], weight, centre[c])
            source[:] = label
            assign(rows, 0, place, half, k, best, fresh)
            changed[:] = False
            if not take(fresh, valid[s], label, changed) and turn > 0:
                break
            n_iter[s] = min(turn + 1, max_iter)
        number(label, k, new)
        renumber(label, new)
        renumber(source, new)
        for c in range(k):
            if begin[c] == begin[c + 1]:
                lost[s, new[c]] = True
                kept[s, new[c]] = centre[c]


@jit.jit
def move_centres(x: Any, weight: Any, label: Any, changed: Any, centre: Any, half: Any) -> None:
    """Centres [K, D] of the clusters that changed become their members' means; half of their squared norms.

    A cluster without members keeps its centre.
    """
    n, k = len(label), len(half)
    order, begin, share = np.empty(n, np.int64), np.empty(k + 1, np.int64), np.empty(n, x.dtype)
    sort_members(label, k, order, begin)
    for c in range(k):
        members = order[begin[c] : begin[c + 1]]
        if changed[c] and len(members) > 0:
            weighted_mean(x, weight, members, share, centre[c])
            norm = centre.dtype.type(0)
            for j in range(len(centre[c])):
                norm += centre[c, j] * centre[c, j]
            half[c] = norm * centre.dtype.type(0.5)


@jit.jit
def assign_block(table: Any, place: Any, half: Any, fresh: Any, size: int, first: int, last: int) -> None:
    """`assign` of the tokens in blocks first..last-1 of so many each, of table [K, N]."""
    n = len(fresh)
    best = np.empty(size, table.dtype)
    for block in range(first, last):
        i, j = block * size, min(n, (block + 1) * size)
        assign(table, i, place, half, len(half), best[: j - i], fresh[i:j])


@jit.jit
def nearest(products: Any, half_norms: Any, labels: Any, at: int, first: int, last: int) -> None:
    """`lloyd_compiled.nearest` of the tokens from `at` on, from their products [B, K, T] with the centres."""
    k, n = products.shape[1:]
    best, fresh, place = np.empty(n, products.dtype), np.empty(n, np.int32), np.arange(k)
    for s in range(first, last):
        assign(products[s], 0, place, half_norms[s], k, best, fresh)
        labels[s, at : at + n] = fresh
