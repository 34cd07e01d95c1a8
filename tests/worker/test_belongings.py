from __future__ import annotations

from math import inf

from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.portable import SessionRecord
from spearpool.worker.belongings import BELONGINGS, AgentRecord, Belongings
from spearpool.worker.passage import MAX_STATE_BYTES


def test_belongings_arrive_as_they_were() -> None:
    agent = Identity(Role.AGENT, "thumb-3-7", "token", instance=InstanceId(3, 7))
    client = Identity(Role.CLIENT, "cli", "token", rights=frozenset({"submit", "observe"}), expires_at=1.5e9)
    for peer, record in ((agent, AgentRecord("thumb", 2, InstanceId(3, 7))), (client, None)):
        session = SessionRecord(peer, 2, 2**32, 2**63 + 5, 1.25, 2.5, inf, b"\0\0\1")
        sent = Belongings(2**63, session, "s-1", "test", None, 0.5, 0.75, 1.25, 41, record)
        packed = BELONGINGS.pack(sent)
        assert BELONGINGS.unpack(packed) == sent
        assert len(packed) < MAX_STATE_BYTES // 64
