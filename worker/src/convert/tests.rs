//! Round trips of the conversions, and messages that anyone may send.
