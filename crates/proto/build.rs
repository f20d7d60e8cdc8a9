//! Generates the messages, and with the feature `client` the gRPC client stubs, from `proto/*.proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "kv.proto",
        "auth.proto",
        "rpc.proto",
        "membership.proto",
        "raft_internal.proto",
        "lease.proto",
        "lock.proto",
        "election.proto",
        "raft.proto",
        "wal.proto",
        "snap.proto",
        "v2.proto",
        "health.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    if std::env::var_os("CARGO_FEATURE_CLIENT").is_some() {
        tonic_prost_build::configure()
            .build_server(false)
            .build_client(true)
            .compile_fds_with_config(descriptors, config)?;
    } else {
        config.compile_fds(descriptors)?;
    }
    Ok(())
}
