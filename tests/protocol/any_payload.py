"""Hypothesis: any payload that has a place on the wire."""

from __future__ import annotations

from hypothesis import strategies as st

from spearpool.protocol.messages import (
    U64_MAX,
    AuthRequest,
    AuthResponse,
    ConnectionClose,
    Custom,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionMode,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    Payload,
    ResourceUsage,
    Signal,
    SignalName,
    StreamData,
    Timestamp,
)

__all__ = ["ids", "payloads"]

ids = st.integers(0, U64_MAX)
texts = st.text(max_size=20)
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(AuthRequest, texts, texts, texts, texts, st.dictionaries(texts, texts, max_size=3)),
    st.builds(AuthResponse, st.booleans(), st.none() | texts, st.none() | texts, texts, st.lists(texts, max_size=3)),
    st.builds(
        ExecuteRequest,
        texts,
        texts,
        st.lists(texts, max_size=3),
        st.dictionaries(texts, texts, max_size=3),
        st.none() | texts,
        st.none() | ids,
        st.sampled_from(ExecutionMode),
        st.none() | st.binary(max_size=300),
        deadline_ms=ids,
        hops=st.integers(0, 255),
    ),
    st.builds(
        ExecuteResponse,
        texts,
        st.sampled_from(ExecutionStatus),
        st.none() | texts,
        exit_code=st.none() | st.integers(-(2**31), 2**31 - 1),
        resource_usage=st.none() | st.builds(ResourceUsage, st.none() | st.floats(0, 1e9), st.none() | ids),
        output_data=st.binary(max_size=300),
    ),
    st.builds(Signal, st.sampled_from(SignalName) | st.builds(Custom, texts), st.none() | texts, st.binary()),
    st.builds(Heartbeat, st.builds(Timestamp, ids, st.integers(0, 999_999_999)), ids, st.just(HeartbeatStatus.ACTIVE)),
    st.builds(ErrorMessage, st.integers(0, 2**32 - 1), texts, st.none() | texts, st.none() | ids),
    st.builds(StreamData, texts, st.binary(max_size=300), st.booleans(), ids),
    st.builds(ConnectionClose, texts),
)
