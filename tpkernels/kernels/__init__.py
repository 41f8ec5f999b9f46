"""Triton kernels; they know nothing of the rest of the package.

    resident/    Ward, K-Means, K-Medoids of samples whose Gram matrix a program holds in scratch
    streaming/   K-Means, K-Medoids of samples of any length; means of clusters and their gradient
    attention/   softmax attention that also tells what each key received, and its gradient
    tokens.py    how tokens are read

One word for one thing:

    sample       one of a batch's B sets of N tokens, clustered by itself
    token        a row [D] of a sample; valid if it is below N and its mask is not 0
    slot         a cluster's index in 0..K-1 while a kernel runs; results number clusters by their lowest token
    label        a token's slot, -1 for none; a key is b (K + 1) + label (K for none), which one sort orders for a batch
    member       a token with the slot's label
    center       what stands for a cluster: the weighted mean of its members, or their medoid
    medoid       the member of least cost, by its token index
    mass, total  the sum of a cluster's weights; total is minus the number of members where that sum is 0
    share        a member's weight over the total: what the mean takes of it
    cost         a token's squared distance to its center; in Ward, what merging two clusters adds to the loss
    score        a squared distance to a center less a term that is the same for all centers
    place        a position in a sorted order, of tokens or of clusters
    row          of a matrix; Ward's clusters have that of their lowest token
    gap          what merging a pair of Ward's clusters costs
    chunk        a fixed number of places of the sorted order, whatever cluster they belong to
    Gram matrix  G = X X^T of a sample, tokens less a pivot a channel; rows are padded to ld, a multiple of 16
    scratch      device memory of one program (`resident/scratch.py`)
    turn         one iteration, or one round of Ward
    stamp        the turn in which a slot's center was last updated; history has every turn's labels
    moving       whether a sample's labels changed in the last turn; one that has converged is skipped

Programs exchange values between lanes through scratch: every such exchange crosses `tl.debug_barrier()`.

Prefixes: `p_` a pointer (those in tuples go without), `o_` offsets or indices, `m_` a mask, `b_` a block of values,
`stride_` a stride. Names without a prefix are scalars or tuples (`resident/arguments.py`). Capitals are compile-time
constants:

    NP, KP       N and K rounded up to a power of two, 16 at least
    T, BD        tokens and channels of a tile
    R            rows of a matrix at a time (resident); members of a cluster at a time (streaming)
    C, U         columns of a matrix at a time; blocks of C that are loaded before any is used
    V            entries of a vector at a time
    S            slots at a time (resident); clusters of a program (streaming)
    P            channels of pooled tokens at a time
    L            places of a chunk
    BM, BN, BK   queries; keys, or tokens to be assigned; centers
    BE, BC       channels of values; channels of queries and keys that a product reads at a time
"""
