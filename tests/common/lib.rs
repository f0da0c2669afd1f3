//! What the system tests share: agents, peers, waiting with an end.
