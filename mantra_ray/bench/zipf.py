"""A stream of Zipf-distributed tokens with topics and injected key-value pairs, for the recall benchmark.

What a trained model would give is made by rule. A token's context is its topic's direction plus noise, and how much
it surprises comes from counts of what went before it (a unigram of the stream with a cache of recent tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOPICS, SEGMENT = 64, 128  # meanings that semantic recall tells apart, tokens in a row on one of them
ORDINARY = -1  # in `TokenStream.pair`: no injected pair
FUNCTION_WORD = 1e-3  # tokens as frequent as this belong to no topic
COHERENCE = 0.8  # share of any other token's occurrences that lie in its own topic
CLARITY = 0.8  # cosine of a context and its topic's direction; of two contexts of a topic it is CLARITY squared
CACHE, CACHE_SHARE = 128, 0.2  # recent tokens of the cache, and the probability mass that it is given


@dataclass(frozen=True)
class StreamConfig:
    """What a stream is drawn from."""

    tokens: int
    """Length N, pairs included."""
    vocabulary: int = 50_000
    """Ordinary token ids, 0 the most frequent; keys of pairs are drawn from as many ids after them."""
    exponent: float = 1.1
    """Zipf exponent: the token of rank r has probability in proportion to r ** -exponent."""
    pairs: int = 1_000
    """Injected key-value pairs P, each with a key token and a value of its own, once at a random place."""
    dim: int = 64
    """Width D of contexts and values."""

    @property
    def ids(self) -> int:
        """Token ids, keys of pairs among them."""
        return 2 * self.vocabulary


@dataclass
class TokenStream:
    """N tokens in order. T topics, P pairs, D width."""

    token: np.ndarray  # [N] ids
    topic: np.ndarray  # [N]
    pair: np.ndarray  # [N] which pair the token is the key of, or ORDINARY
    hidden: np.ndarray  # [N, D] float32 unit contexts
    surprisal: np.ndarray  # [N] float32, nats
    topic_code: np.ndarray  # [T, D] unit vectors: what an ordinary token's record holds
    pair_code: np.ndarray  # [P, D] unit vectors: what a pair's record holds

    @property
    def value(self) -> np.ndarray:
        """What each token's record holds, [N, D]."""
        return np.where(self.pair[:, None] == ORDINARY, self.topic_code[self.topic], self.pair_code[self.pair])


def make_stream(config: StreamConfig, seed: int) -> TokenStream:
    """A stream and everything random about it, from one seed."""
    rng = np.random.default_rng(seed)
    token, topic = topical_tokens(config, rng)
    place = np.sort(rng.choice(config.tokens, config.pairs, replace=False))
    before = place - np.arange(config.pairs)  # ordinary tokens before each pair, whose topic it shares
    pair = np.insert(np.full(len(token), ORDINARY), before, rng.permutation(config.pairs))
    keys = config.vocabulary + rng.choice(config.vocabulary, config.pairs, replace=False)
    topic = np.insert(topic, before, topic[np.minimum(before, len(topic) - 1)])
    token = np.insert(token, before, 0)
    token[pair != ORDINARY] = keys[pair[pair != ORDINARY]]
    direction = unit(rng.standard_normal((TOPICS, config.dim), dtype=np.float32))
    return TokenStream(
        token=token,
        topic=topic,
        pair=pair,
        hidden=blur(direction[topic], CLARITY, rng),
        surprisal=running_surprisal(token, config.ids).astype(np.float32),
        topic_code=unit(rng.standard_normal((TOPICS, config.dim), dtype=np.float32)),
        pair_code=unit(rng.standard_normal((config.pairs, config.dim), dtype=np.float32)),
    )


def probabilities(vocabulary: int, exponent: float) -> np.ndarray:
    """Zipf's law over ids 0 to vocabulary - 1 (rank = id + 1), [vocabulary]."""
    weight = np.arange(1, vocabulary + 1, dtype=float) ** -exponent
    return weight / weight.sum()


def topical_tokens(config: StreamConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ids and topics of the ordinary tokens in stream order, each [N - P].

    Ids are drawn from Zipf's law alone, each occurrence is given a topic, and the occurrences of a topic are dealt
    into segments: what is frequent stays exactly Zipf while rare tokens come in bursts, as in text.
    """
    count, law = config.tokens - config.pairs, probabilities(config.vocabulary, config.exponent)
    token = rng.choice(config.vocabulary, count, p=law)
    topic = rng.integers(TOPICS, size=count)
    home = rng.integers(TOPICS, size=config.vocabulary)
    at_home = (law[token] < FUNCTION_WORD) & (rng.random(count) < COHERENCE)
    topic = np.where(at_home, home[token], topic)
    by_topic = np.lexsort((rng.random(count), topic))
    within = np.arange(count) - np.searchsorted(topic[by_topic], topic[by_topic])
    segment = topic[by_topic] * (count // SEGMENT + 1) + within // SEGMENT
    _, segment = np.unique(segment, return_inverse=True)
    order = by_topic[np.argsort(rng.permutation(segment.max() + 1)[segment], kind="stable")]
    return token[order], topic[order]


def running_surprisal(token: np.ndarray, ids: int) -> np.ndarray:
    """Nats -log p(token | all tokens before it), [N]: counts with a cache of recent tokens (Kuhn & De Mori 1990).

    A token never seen shares the escape mass types / (tokens + types) evenly with all such (Witten & Bell 1991,
    method C).
    """
    count, place = len(token), np.arange(len(token))
    code = np.sort(token * count + place)  # by token, then by place
    own = np.searchsorted(code, token * count + place)
    seen = own - np.searchsorted(code, token * count)
    recent = own - np.searchsorted(code, token * count + np.maximum(place - CACHE, 0))
    types = np.cumsum(seen == 0) - (seen == 0)  # distinct tokens before each
    new = np.maximum(types, 1) / (np.maximum(place + types, 1) * np.maximum(ids - types, 1))
    unigram = np.where(seen > 0, seen / np.maximum(place + types, 1), new)
    cached = recent / np.maximum(np.minimum(place, CACHE), 1)
    return -np.log((1 - CACHE_SHARE) * unigram + CACHE_SHARE * cached)


def blur(vectors: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors [N, D] at exactly this cosine to the unit vectors given, in random directions."""
    noise = rng.standard_normal(vectors.shape, dtype=np.float32)
    noise -= (noise * vectors).sum(-1, keepdims=True) * vectors
    return unit(cosine * vectors + np.float32(np.sqrt(1 - cosine**2)) * unit(noise))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
