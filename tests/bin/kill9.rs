//! Kills a server under load, again and again, and checks that every promise survived.
