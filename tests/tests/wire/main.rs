//! What may go wrong between two processes: requests that nobody of ours sends, servers that are
//! silent, late or confused. Each is refused by name, and the service goes on.

mod answers;
mod requests;
mod stage;
