//! The backend against scripted CQEs: each test writes the CQEs of a ring that never enters the
//! kernel. Valid ones must complete the right operation, invalid ones must fail the backend.

mod completions;
mod harness;
mod random;
mod violations;
