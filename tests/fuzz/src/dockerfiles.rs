//! Dockerfiles.

/// Parses a Dockerfile. An error has a message.
pub fn run(text: &[u8]) {
    match dockerfile::parse("Dockerfile", text) {
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Dockerfiles that use the whole language.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "# syntax=docker/dockerfile:1\n# escape=`\nFROM a AS b\nRUN c `\n d\n",
        "ARG A=1\nFROM --platform=$BUILDPLATFORM x:${A:-2}\nENV a=b c=\"d e\" f=\\ g\nLABEL x y z\n",
        "FROM scratch\nCOPY --from=b --chown=1:2 --link [\"a\", \"b/\"] /c\nADD https://x/y /z\n",
        "FROM a\nRUN --mount=type=cache,target=/x <<EOF\necho\nEOF\nCOPY <<-'A' <<B /d/\n\tone\nA\ntwo\nB\n",
        "FROM a\nHEALTHCHECK --interval=1m CMD x\nONBUILD RUN y\nSHELL [\"/bin/sh\", \"-c\"]\nEXPOSE 1-3/tcp\n",
        "FROM a\nUSER 1\nWORKDIR /a\nVOLUME [\"/b\"]\nSTOPSIGNAL 9\nENTRYPOINT [\"x\"]\nCMD y z\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
