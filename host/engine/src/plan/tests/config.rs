//! What instructions do to the image's configuration and history.

use oci::Healthcheck;

use super::*;

#[test]
fn a_stage_from_scratch_has_a_path_and_a_root() {
    let stage = target_of("FROM scratch\nRUN x");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(stage.config.env, [path]);
    assert_eq!(stage.config.working_dir, "/");
    let run = runs(&stage)[0];
    assert_eq!(
        (run.env.as_slice(), run.cwd.as_str()),
        ([path.to_owned()].as_slice(), "/")
    );
    assert_eq!(run.hostname, "buildkitsandbox");
}

#[test]
fn the_path_of_the_base_is_kept_and_env_replaces_in_place() {
    let config = ImageConfig {
        env: vec!["PATH=/bin".into(), "A=1".into(), "B=2".into()],
        working_dir: "w/..//x".into(),
        ..ImageConfig::default()
    };
    let stage = on_image(config, "FROM a\nENV A=3 C=4\nRUN x");
    assert_eq!(stage.config.env, ["PATH=/bin", "A=3", "B=2", "C=4"]);
    assert_eq!(runs(&stage)[0].cwd, "/x");
}

#[test]
fn commands_store_the_shell_of_their_moment() {
    let stage = target_of("FROM a\nCMD x $Y\nSHELL [\"/bin/bash\",\"-c\"]\nENTRYPOINT y");
    assert_eq!(stage.config.cmd, ["/bin/sh", "-c", "x $Y"]);
    assert_eq!(stage.config.entrypoint, ["/bin/bash", "-c", "y"]);
    assert_eq!(stage.config.shell, ["/bin/bash", "-c"]);
    assert!(stage.config.args_escaped);
}

#[test]
fn an_entry_point_clears_an_inherited_command_only() {
    let base = || ImageConfig {
        cmd: vec!["nginx".into()],
        ..ImageConfig::default()
    };
    assert!(
        on_image(base(), "FROM nginx\nENTRYPOINT [\"/e\"]")
            .config
            .cmd
            .is_empty()
    );
    let own = on_image(base(), "FROM nginx\nCMD [\"c\"]\nENTRYPOINT [\"/e\"]");
    assert_eq!(own.config.cmd, ["c"]);
    assert_eq!(
        on_image(base(), "FROM nginx\nLABEL a=b").config.cmd,
        ["nginx"]
    );
}

#[test]
fn exec_form_is_taken_as_it_is() {
    let stage = target_of("FROM a\nRUN [\"echo\", \"$HOME\"]\nRUN ['a', 'b']\nRUN [ -f /x ] && y");
    let args: Vec<_> = runs(&stage)
        .into_iter()
        .map(|run| run.args.clone())
        .collect();
    assert_eq!(args[0], ["echo", "$HOME"]);
    assert_eq!(args[1], ["/bin/sh", "-c", "['a', 'b']"]);
    assert_eq!(args[2], ["/bin/sh", "-c", "[ -f /x ] && y"]);
    refused("FROM a\nRUN []", 2, "at least one argument");
    refused("FROM a\nCMD [1]", 2, "only string type");
    refused("FROM a\nSHELL /bin/bash -c", 2, "JSON form");
}

#[test]
fn working_directories_are_relative_to_each_other() {
    let stage =
        target_of("FROM a\nWORKDIR /a/b/\nWORKDIR ../c\nWORKDIR my dir\nWORKDIR ~/x\nRUN y");
    let paths: Vec<_> = created_by(&stage);
    assert_eq!(
        paths[..4],
        [
            "WORKDIR /a/b/",
            "WORKDIR /a/c",
            "WORKDIR /a/c/my dir",
            "WORKDIR /a/c/my dir/~/x"
        ]
    );
    assert_eq!(runs(&stage)[0].cwd, "/a/c/my dir/~/x");
    assert_eq!(
        target_of("FROM a\nWORKDIR /a/b/").config.working_dir,
        "/a/b/"
    );
}

#[test]
fn the_root_as_working_directory_makes_no_layer() {
    let stage = target_of("FROM a\nUSER 55\nWORKDIR /\nWORKDIR /w\nWORKDIR \"\"");
    assert_eq!(stage.steps[1].op, Op::Meta);
    assert_eq!(
        stage.steps[2].op,
        Op::Workdir {
            path: "/w".into(),
            user: "55".into()
        }
    );
    assert_eq!(stage.config.working_dir, "/w");
}

#[test]
fn ports_are_sorted_split_and_spelt_out() {
    let stage = target_of("FROM a\nARG P=\"80 90\"\nEXPOSE $P 443/TCP 53-54/udp");
    let ports: Vec<_> = stage
        .config
        .exposed_ports
        .iter()
        .map(String::as_str)
        .collect();
    assert_eq!(ports, ["443/tcp", "53/udp", "54/udp", "80/tcp", "90/tcp"]);
    assert_eq!(
        created_by(&stage)[1],
        "EXPOSE [80/tcp 90/tcp 443/tcp 53/udp 54/udp]"
    );
    refused("FROM a\nEXPOSE x", 2, "invalid port");
    refused("FROM a\nEXPOSE", 2, "at least one argument");
}

#[test]
fn volumes_are_collected() {
    let stage = target_of("FROM a\nVOLUME /v /w\nVOLUME [\"/x y\"]\nRUN echo a >/v/f");
    let volumes: Vec<_> = stage.config.volumes.iter().map(String::as_str).collect();
    assert_eq!(volumes, ["/v", "/w", "/x y"]);
    assert_eq!(created_by(&stage)[0], "VOLUME [/v /w]");
    refused("FROM a\nVOLUME [\"\"]", 2, "empty string");
    refused("FROM a\nVOLUME $X", 2, "empty string");
}

#[test]
fn signals_are_checked_and_stored_as_written() {
    assert_eq!(
        target_of("FROM a\nSTOPSIGNAL quit").config.stop_signal,
        "quit"
    );
    refused("FROM a\nSTOPSIGNAL SIGTREM", 2, "did you mean SIGTERM?");
}

#[test]
fn health_checks_are_read() {
    let stage = target_of(
        "FROM a\nHEALTHCHECK NONE\nHEALTHCHECK --interval=1m30s --retries=2 CMD curl -f http://x",
    );
    assert_eq!(
        stage.config.healthcheck,
        Some(Healthcheck {
            test: vec!["CMD-SHELL".into(), "curl -f http://x".into()],
            interval: 90_000_000_000,
            retries: 2,
            ..Healthcheck::default()
        })
    );
    assert_eq!(
        created_by(&stage)[1],
        "HEALTHCHECK {Test:[CMD-SHELL curl -f http://x] Interval:1m30s Timeout:0s StartPeriod:0s \
         StartInterval:0s Retries:2}"
    );
    let exec = target_of("FROM a\nHEALTHCHECK CMD [\"a\", \"b\"]");
    assert_eq!(exec.config.healthcheck.unwrap().test, ["CMD", "a", "b"]);
    let none = target_of("FROM a\nHEALTHCHECK none");
    assert_eq!(none.config.healthcheck.unwrap().test, ["NONE"]);
    refused(
        "FROM a\nHEALTHCHECK --interval=1us CMD x",
        2,
        "less than 1ms",
    );
    refused("FROM a\nHEALTHCHECK --retries=-1 CMD x", 2, "--retries");
    refused(
        "FROM a\nHEALTHCHECK --timeout=5 CMD x",
        2,
        "invalid duration",
    );
    refused("FROM a\nHEALTHCHECK CMD", 2, "missing command");
    refused("FROM a\nHEALTHCHECK x", 2, "unknown type");
}

#[test]
fn flags_that_docker_never_checks_are_accepted() {
    let stage =
        target_of("FROM a\nARG --typo X=1\nSTOPSIGNAL --typo 9\nHEALTHCHECK --typo NONE\nRUN x");
    assert_eq!(stage.config.stop_signal, "9");
    assert!(runs(&stage)[0].env.contains(&"X=1".to_owned()));
}

#[test]
fn history_is_in_docker_s_words() {
    let stage = target_of(
        "FROM a\nARG X=1 Y\nENV A=\"b c\" D=$X\nLABEL l=\"m n\"\nUSER u:g\nRUN make\n\
         CMD [\"a\", \"b\\\"c\"]\nENTRYPOINT e\nSHELL [\"/b\", \"-c\"]\nSTOPSIGNAL 9\n\
         MAINTAINER A B <a@b>\nONBUILD RUN y\nARG X=2\nRUN [\"/p\", \"q\"]",
    );
    assert_eq!(
        created_by(&stage),
        [
            "ARG X=1 Y",
            "ENV A=b c D=1",
            "LABEL l=m n",
            "USER u:g",
            "RUN |2 X=1 Y= /bin/sh -c make # buildkit",
            r#"CMD ["a" "b\"c"]"#,
            r#"ENTRYPOINT ["/bin/sh" "-c" "e"]"#,
            "SHELL [/b -c]",
            "STOPSIGNAL 9",
            "MAINTAINER A B <a@b>",
            "ARG X=2",
            "RUN |2 X=2 Y= /p q # buildkit",
        ]
    );
    assert_eq!(stage.author.as_deref(), Some("A B <a@b>"));
    assert_eq!(stage.config.on_build, ["RUN y"]);
}

#[test]
fn labels_of_the_user_win_over_the_file() {
    let o = PlanOptions {
        labels: vec![("a".into(), "mine".into())],
        ..options()
    };
    let plan = plan_with("FROM x\nLABEL a=file b=\"2 3\" \"c d\"=e\nLABEL f $b", &o);
    let labels = &plan.stages[0].config.labels;
    assert_eq!(
        (labels["a"].as_str(), labels["b"].as_str()),
        ("mine", "2 3")
    );
    assert_eq!(labels["c d"], "e");
    assert_eq!(plan.stages[0].steps.len(), 2);
}

#[test]
fn a_heredoc_alone_is_the_script() {
    let stage = target_of("FROM a\nRUN <<E\nfalse\ntrue $X\nE\nRUN <<-'E'\n\tx\n\tE");
    assert_eq!(runs(&stage)[0].args, ["/bin/sh", "-c", "false\ntrue $X\n"]);
    assert_eq!(runs(&stage)[1].args[2], "x\n");
    assert_eq!(stage.steps[0].display, "[2/3] RUN <<E (false...)");
    assert_eq!((stage.steps[0].line, stage.steps[0].last_line), (2, 5));
}

#[test]
fn a_heredoc_that_names_its_interpreter_is_a_program() {
    let stage = target_of("FROM a\nSHELL [\"/bin/bash\"]\nRUN <<-E\n#!/bin/python\n\tx = $X\nE");
    let run = runs(&stage)[0];
    assert_eq!(run.args, ["/dev/pipes/E"]);
    let script = run.script.as_ref().unwrap();
    assert_eq!(
        (script.name.as_str(), script.data.as_str()),
        ("E", "#!/bin/python\nx = $X\n")
    );
    for (name, quoted) in [("..", "\"..\""), ("a/b", "\"a/b\"")] {
        let text = format!("FROM a\nRUN <<{name}\n#!/bin/sh\n{name}");
        refused(&text, 2, &format!("{quoted} is not a valid file name"));
    }
    // Left to the shell, which passes it on.
    let stage = target_of("FROM a\nRUN cat <<E\n#!/bin/sh\nE");
    assert_eq!(runs(&stage)[0].script, None);
}

#[test]
fn other_heredocs_are_left_to_the_shell() {
    let stage =
        target_of("FROM a\nRUN cat <<-A <<B >f\n\t1\n\tA\n2\nB\nRUN python3 <<E\nprint(1)\nE");
    assert_eq!(runs(&stage)[0].args[2], "cat <<-A <<B >f\n\t1\nA\n2\nB");
    assert_eq!(runs(&stage)[1].args[2], "python3 <<E\nprint(1)\nE");
}

#[test]
fn heredocs_that_do_not_end_are_errors() {
    refused(
        "FROM a\nRUN echo $(( 1 << 2 ))\nRUN b",
        2,
        "unterminated heredoc",
    );
    refused("FROM a\nRUN cat <<E>f\nhi\nE", 2, "unterminated heredoc");
    refused("FROM a\nRUN <<E\ntrue\n  E", 2, "unterminated heredoc");
    target_of("FROM a\nRUN echo $((1<<2))\nRUN cat <<<x");
}

#[test]
fn the_user_s_hosts_and_host_name_reach_run() {
    let o = PlanOptions {
        hosts: vec![("1.2.3.4".into(), "h".into())],
        network: StepNetwork::None,
        ..options_with_args(&[("BUILDKIT_SANDBOX_HOSTNAME", "me")])
    };
    let plan = plan_with("FROM a\nRUN x\nRUN --network=default y", &o);
    let runs = runs(&plan.stages[0]);
    assert_eq!(runs[0].hosts, [("1.2.3.4".to_owned(), "h".to_owned())]);
    assert_eq!(
        (runs[0].hostname.as_str(), runs[0].network),
        ("me", StepNetwork::None)
    );
    assert_eq!(runs[1].network, StepNetwork::Default);
}
