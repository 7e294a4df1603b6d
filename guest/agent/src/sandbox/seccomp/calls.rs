//! The system calls of x86-64, i386 and x32, and what becomes of each in a step.
//!
//! Numbers are those of the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `syscall_32.tbl`; x32
//! numbers are without their bit. Verdicts are those of Docker's default profile,
//! `seccomp/default.json` in `github.com/moby/profiles` as of 2026, for the capabilities that a step
//! has and a kernel of 4.8 or newer. Two rows are stricter, since only a kernel without vsock makes
//! them harmless: `socketpair` is held to the families of `socket`, and see [`Verdict::Multiplexed`].
//!
//! What has no row is refused (`EPERM`), or unknown (`ENOSYS`) if its number is above all that the
//! profile knows: programs fall back to older calls then.

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The kernel decides.
    Allow,
    /// `EPERM`.
    Deny,
    /// `ENOSYS`.
    Missing,
    /// `clone`: allowed if it makes no namespace.
    Namespaces,
    /// `socket`: allowed for the address families of the profile.
    Family,
    /// `personality`: allowed for Linux, with or without its quirks for old programs, and for asking.
    Persona,
    /// `socketcall`: its arguments are in memory, so the address family cannot be seen. It makes no
    /// socket if the kernel has vsock.
    Multiplexed,
}

/// A system call.
#[derive(Debug)]
pub(super) struct Call {
    #[cfg_attr(not(test), expect(dead_code, reason = "it names the row"))]
    pub(super) name: &'static str,
    pub(super) x86_64: Option<u32>,
    pub(super) i386: Option<u32>,
    pub(super) x32: Option<u32>,
    pub(super) verdict: Verdict,
}

macro_rules! number {
    (-) => {
        None
    };
    ($number:literal) => {
        Some($number)
    };
}

macro_rules! verdict {
    (allow) => {
        Verdict::Allow
    };
    (deny) => {
        Verdict::Deny
    };
    (missing) => {
        Verdict::Missing
    };
    (namespaces) => {
        Verdict::Namespaces
    };
    (family) => {
        Verdict::Family
    };
    (persona) => {
        Verdict::Persona
    };
    (multiplexed) => {
        Verdict::Multiplexed
    };
}

macro_rules! calls {
    ($($name:ident $x86_64:tt $i386:tt $x32:tt $verdict:ident;)*) => {
        &[$(Call {
            name: stringify!($name),
            x86_64: number!($x86_64),
            i386: number!($i386),
            x32: number!($x32),
            verdict: verdict!($verdict),
        }),*]
    };
}

#[rustfmt::skip]
pub(super) const CALLS: &[Call] = calls! {
    // name                    x86-64  i386   x32  verdict
    _llseek                          -   140     -  allow;
    _newselect                       -   142     -  allow;
    _sysctl                        156   149     -  deny;
    accept                          43     -    43  allow;
    accept4                        288   364   288  allow;
    access                          21    33    21  allow;
    acct                           163    51   163  deny;
    add_key                        248   286   248  deny;
    adjtimex                       159   124   159  allow;
    afs_syscall                    183   137   183  deny;
    alarm                           37    27    37  allow;
    arch_prctl                     158   384   158  allow;
    bdflush                          -   134     -  deny;
    bind                            49   361    49  allow;
    bpf                            321   357   321  deny;
    break                            -    17     -  deny;
    brk                             12    45    12  allow;
    cachestat                      451   451   451  allow;
    capget                         125   184   125  allow;
    capset                         126   185   126  allow;
    chdir                           80    12    80  allow;
    chmod                           90    15    90  allow;
    chown                           92   182    92  allow;
    chown32                          -   212     -  allow;
    chroot                         161    61   161  allow;
    clock_adjtime                  305   343   305  allow;
    clock_adjtime64                  -   405     -  allow;
    clock_getres                   229   266   229  allow;
    clock_getres_time64              -   406     -  allow;
    clock_gettime                  228   265   228  allow;
    clock_gettime64                  -   403     -  allow;
    clock_nanosleep                230   267   230  allow;
    clock_nanosleep_time64           -   407     -  allow;
    clock_settime                  227   264   227  deny;
    clock_settime64                  -   404     -  deny;
    clone                           56   120    56  namespaces;
    clone3                         435   435   435  missing;
    close                            3     6     3  allow;
    close_range                    436   436   436  allow;
    connect                         42   362    42  allow;
    copy_file_range                326   377   326  allow;
    creat                           85     8    85  allow;
    create_module                  174   127     -  deny;
    delete_module                  176   129   176  deny;
    dup                             32    41    32  allow;
    dup2                            33    63    33  allow;
    dup3                           292   330   292  allow;
    epoll_create                   213   254   213  allow;
    epoll_create1                  291   329   291  allow;
    epoll_ctl                      233   255   233  allow;
    epoll_ctl_old                  214     -     -  allow;
    epoll_pwait                    281   319   281  allow;
    epoll_pwait2                   441   441   441  allow;
    epoll_wait                     232   256   232  allow;
    epoll_wait_old                 215     -     -  allow;
    eventfd                        284   323   284  allow;
    eventfd2                       290   328   290  allow;
    execve                          59    11   520  allow;
    execveat                       322   358   545  allow;
    exit                            60     1    60  allow;
    exit_group                     231   252   231  allow;
    faccessat                      269   307   269  allow;
    faccessat2                     439   439   439  allow;
    fadvise64                      221   250   221  allow;
    fadvise64_64                     -   272     -  allow;
    fallocate                      285   324   285  allow;
    fanotify_init                  300   338   300  deny;
    fanotify_mark                  301   339   301  allow;
    fchdir                          81   133    81  allow;
    fchmod                          91    94    91  allow;
    fchmodat                       268   306   268  allow;
    fchmodat2                      452   452   452  allow;
    fchown                          93    95    93  allow;
    fchown32                         -   207     -  allow;
    fchownat                       260   298   260  allow;
    fcntl                           72    55    72  allow;
    fcntl64                          -   221     -  allow;
    fdatasync                       75   148    75  allow;
    fgetxattr                      193   231   193  allow;
    finit_module                   313   350   313  deny;
    flistxattr                     196   234   196  allow;
    flock                           73   143    73  allow;
    fork                            57     2    57  allow;
    fremovexattr                   199   237   199  allow;
    fsconfig                       431   431   431  deny;
    fsetxattr                      190   228   190  allow;
    fsmount                        432   432   432  deny;
    fsopen                         430   430   430  deny;
    fspick                         433   433   433  deny;
    fstat                            5   108     5  allow;
    fstat64                          -   197     -  allow;
    fstatat64                        -   300     -  allow;
    fstatfs                        138   100   138  allow;
    fstatfs64                        -   269     -  allow;
    fsync                           74   118    74  allow;
    ftime                            -    35     -  deny;
    ftruncate                       77    93    77  allow;
    ftruncate64                      -   194     -  allow;
    futex                          202   240   202  allow;
    futex_requeue                  456   456   456  allow;
    futex_time64                     -   422     -  allow;
    futex_wait                     455   455   455  allow;
    futex_waitv                    449   449   449  allow;
    futex_wake                     454   454   454  allow;
    futimesat                      261   299   261  allow;
    get_kernel_syms                177   130     -  deny;
    get_mempolicy                  239   275   239  deny;
    get_robust_list                274   312   531  allow;
    get_thread_area                211   244     -  allow;
    getcpu                         309   318   309  allow;
    getcwd                          79   183    79  allow;
    getdents                        78   141    78  allow;
    getdents64                     217   220   217  allow;
    getegid                        108    50   108  allow;
    getegid32                        -   202     -  allow;
    geteuid                        107    49   107  allow;
    geteuid32                        -   201     -  allow;
    getgid                         104    47   104  allow;
    getgid32                         -   200     -  allow;
    getgroups                      115    80   115  allow;
    getgroups32                      -   205     -  allow;
    getitimer                       36   105    36  allow;
    getpeername                     52   368    52  allow;
    getpgid                        121   132   121  allow;
    getpgrp                        111    65   111  allow;
    getpid                          39    20    39  allow;
    getpmsg                        181   188   181  deny;
    getppid                        110    64   110  allow;
    getpriority                    140    96   140  allow;
    getrandom                      318   355   318  allow;
    getresgid                      120   171   120  allow;
    getresgid32                      -   211     -  allow;
    getresuid                      118   165   118  allow;
    getresuid32                      -   209     -  allow;
    getrlimit                       97    76    97  allow;
    getrusage                       98    77    98  allow;
    getsid                         124   147   124  allow;
    getsockname                     51   367    51  allow;
    getsockopt                      55   365   542  allow;
    gettid                         186   224   186  allow;
    gettimeofday                    96    78    96  allow;
    getuid                         102    24   102  allow;
    getuid32                         -   199     -  allow;
    getxattr                       191   229   191  allow;
    getxattrat                     464   464   464  allow;
    gtty                             -    32     -  deny;
    idle                             -   112     -  deny;
    init_module                    175   128   175  deny;
    inotify_add_watch              254   292   254  allow;
    inotify_init                   253   291   253  allow;
    inotify_init1                  294   332   294  allow;
    inotify_rm_watch               255   293   255  allow;
    io_cancel                      210   249   210  allow;
    io_destroy                     207   246   207  allow;
    io_getevents                   208   247   208  allow;
    io_pgetevents                  333   385   333  allow;
    io_pgetevents_time64             -   416     -  allow;
    io_setup                       206   245   543  allow;
    io_submit                      209   248   544  allow;
    io_uring_enter                 426   426   426  deny;
    io_uring_register              427   427   427  deny;
    io_uring_setup                 425   425   425  deny;
    ioctl                           16    54   514  allow;
    ioperm                         173   101   173  deny;
    iopl                           172   110   172  deny;
    ioprio_get                     252   290   252  allow;
    ioprio_set                     251   289   251  allow;
    ipc                              -   117     -  allow;
    kcmp                           312   349   312  deny;
    kexec_file_load                320     -   320  deny;
    kexec_load                     246   283   528  deny;
    keyctl                         250   288   250  deny;
    kill                            62    37    62  allow;
    landlock_add_rule              445   445   445  allow;
    landlock_create_ruleset        444   444   444  allow;
    landlock_restrict_self         446   446   446  allow;
    lchown                          94    16    94  allow;
    lchown32                         -   198     -  allow;
    lgetxattr                      192   230   192  allow;
    link                            86     9    86  allow;
    linkat                         265   303   265  allow;
    listen                          50   363    50  allow;
    listmount                      458   458   458  allow;
    listxattr                      194   232   194  allow;
    listxattrat                    465   465   465  allow;
    llistxattr                     195   233   195  allow;
    lock                             -    53     -  deny;
    lookup_dcookie                 212   253   212  deny;
    lremovexattr                   198   236   198  allow;
    lseek                            8    19     8  allow;
    lsetxattr                      189   227   189  allow;
    lsm_get_self_attr              459   459   459  deny;
    lsm_list_modules               461   461   461  deny;
    lsm_set_self_attr              460   460   460  deny;
    lstat                            6   107     6  allow;
    lstat64                          -   196     -  allow;
    madvise                         28   219    28  allow;
    map_shadow_stack               453   453   453  allow;
    mbind                          237   274   237  deny;
    membarrier                     324   375   324  allow;
    memfd_create                   319   356   319  allow;
    memfd_secret                   447   447   447  allow;
    migrate_pages                  256   294   256  deny;
    mincore                         27   218    27  allow;
    mkdir                           83    39    83  allow;
    mkdirat                        258   296   258  allow;
    mknod                          133    14   133  allow;
    mknodat                        259   297   259  allow;
    mlock                          149   150   149  allow;
    mlock2                         325   376   325  allow;
    mlockall                       151   152   151  allow;
    mmap                             9    90     9  allow;
    mmap2                            -   192     -  allow;
    modify_ldt                     154   123   154  allow;
    mount                          165    21   165  deny;
    mount_setattr                  442   442   442  deny;
    move_mount                     429   429   429  deny;
    move_pages                     279   317   533  deny;
    mprotect                        10   125    10  allow;
    mpx                              -    56     -  deny;
    mq_getsetattr                  245   282   245  allow;
    mq_notify                      244   281   527  allow;
    mq_open                        240   277   240  allow;
    mq_timedreceive                243   280   243  allow;
    mq_timedreceive_time64           -   419     -  allow;
    mq_timedsend                   242   279   242  allow;
    mq_timedsend_time64              -   418     -  allow;
    mq_unlink                      241   278   241  allow;
    mremap                          25   163    25  allow;
    mseal                          462   462   462  allow;
    msgctl                          71   402    71  allow;
    msgget                          68   399    68  allow;
    msgrcv                          70   401    70  allow;
    msgsnd                          69   400    69  allow;
    msync                           26   144    26  allow;
    munlock                        150   151   150  allow;
    munlockall                     152   153   152  allow;
    munmap                          11    91    11  allow;
    name_to_handle_at              303   341   303  allow;
    nanosleep                       35   162    35  allow;
    newfstatat                     262     -   262  allow;
    nfsservctl                     180   169     -  deny;
    nice                             -    34     -  deny;
    oldfstat                         -    28     -  deny;
    oldlstat                         -    84     -  deny;
    oldolduname                      -    59     -  deny;
    oldstat                          -    18     -  deny;
    olduname                         -   109     -  deny;
    open                             2     5     2  allow;
    open_by_handle_at              304   342   304  deny;
    open_tree                      428   428   428  deny;
    openat                         257   295   257  allow;
    openat2                        437   437   437  allow;
    pause                           34    29    34  allow;
    perf_event_open                298   336   298  deny;
    personality                    135   136   135  persona;
    pidfd_getfd                    438   438   438  deny;
    pidfd_open                     434   434   434  allow;
    pidfd_send_signal              424   424   424  allow;
    pipe                            22    42    22  allow;
    pipe2                          293   331   293  allow;
    pivot_root                     155   217   155  deny;
    pkey_alloc                     330   381   330  allow;
    pkey_free                      331   382   331  allow;
    pkey_mprotect                  329   380   329  allow;
    poll                             7   168     7  allow;
    ppoll                          271   309   271  allow;
    ppoll_time64                     -   414     -  allow;
    prctl                          157   172   157  allow;
    pread64                         17   180    17  allow;
    preadv                         295   333   534  allow;
    preadv2                        327   378   546  allow;
    prlimit64                      302   340   302  allow;
    process_madvise                440   440   440  deny;
    process_mrelease               448   448   448  allow;
    process_vm_readv               310   347   539  allow;
    process_vm_writev              311   348   540  allow;
    prof                             -    44     -  deny;
    profil                           -    98     -  deny;
    pselect6                       270   308   270  allow;
    pselect6_time64                  -   413     -  allow;
    ptrace                         101    26   521  allow;
    putpmsg                        182   189   182  deny;
    pwrite64                        18   181    18  allow;
    pwritev                        296   334   535  allow;
    pwritev2                       328   379   547  allow;
    query_module                   178   167     -  deny;
    quotactl                       179   131   179  deny;
    quotactl_fd                    443   443   443  deny;
    read                             0     3     0  allow;
    readahead                      187   225   187  allow;
    readdir                          -    89     -  deny;
    readlink                        89    85    89  allow;
    readlinkat                     267   305   267  allow;
    readv                           19   145   515  allow;
    reboot                         169    88   169  deny;
    recvfrom                        45   371   517  allow;
    recvmmsg                       299   337   537  allow;
    recvmmsg_time64                  -   417     -  allow;
    recvmsg                         47   372   519  allow;
    remap_file_pages               216   257   216  allow;
    removexattr                    197   235   197  allow;
    removexattrat                  466   466   466  allow;
    rename                          82    38    82  allow;
    renameat                       264   302   264  allow;
    renameat2                      316   353   316  allow;
    request_key                    249   287   249  deny;
    restart_syscall                219     0   219  allow;
    rmdir                           84    40    84  allow;
    rseq                           334   386   334  allow;
    rt_sigaction                    13   174   512  allow;
    rt_sigpending                  127   176   522  allow;
    rt_sigprocmask                  14   175    14  allow;
    rt_sigqueueinfo                129   178   524  allow;
    rt_sigreturn                    15   173   513  allow;
    rt_sigsuspend                  130   179   130  allow;
    rt_sigtimedwait                128   177   523  allow;
    rt_sigtimedwait_time64           -   421     -  allow;
    rt_tgsigqueueinfo              297   335   536  allow;
    sched_get_priority_max         146   159   146  allow;
    sched_get_priority_min         147   160   147  allow;
    sched_getaffinity              204   242   204  allow;
    sched_getattr                  315   352   315  allow;
    sched_getparam                 143   155   143  allow;
    sched_getscheduler             145   157   145  allow;
    sched_rr_get_interval          148   161   148  allow;
    sched_rr_get_interval_time64     -   423     -  allow;
    sched_setaffinity              203   241   203  allow;
    sched_setattr                  314   351   314  allow;
    sched_setparam                 142   154   142  allow;
    sched_setscheduler             144   156   144  allow;
    sched_yield                     24   158    24  allow;
    seccomp                        317   354   317  allow;
    security                       185     -   185  deny;
    select                          23    82    23  allow;
    semctl                          66   394    66  allow;
    semget                          64   393    64  allow;
    semop                           65     -    65  allow;
    semtimedop                     220     -   220  allow;
    semtimedop_time64                -   420     -  allow;
    sendfile                        40   187    40  allow;
    sendfile64                       -   239     -  allow;
    sendmmsg                       307   345   538  allow;
    sendmsg                         46   370   518  allow;
    sendto                          44   369    44  allow;
    set_mempolicy                  238   276   238  deny;
    set_mempolicy_home_node        450   450   450  deny;
    set_robust_list                273   311   530  allow;
    set_thread_area                205   243     -  allow;
    set_tid_address                218   258   218  allow;
    setdomainname                  171   121   171  deny;
    setfsgid                       123   139   123  allow;
    setfsgid32                       -   216     -  allow;
    setfsuid                       122   138   122  allow;
    setfsuid32                       -   215     -  allow;
    setgid                         106    46   106  allow;
    setgid32                         -   214     -  allow;
    setgroups                      116    81   116  allow;
    setgroups32                      -   206     -  allow;
    sethostname                    170    74   170  deny;
    setitimer                       38   104    38  allow;
    setns                          308   346   308  deny;
    setpgid                        109    57   109  allow;
    setpriority                    141    97   141  allow;
    setregid                       114    71   114  allow;
    setregid32                       -   204     -  allow;
    setresgid                      119   170   119  allow;
    setresgid32                      -   210     -  allow;
    setresuid                      117   164   117  allow;
    setresuid32                      -   208     -  allow;
    setreuid                       113    70   113  allow;
    setreuid32                       -   203     -  allow;
    setrlimit                      160    75   160  allow;
    setsid                         112    66   112  allow;
    setsockopt                      54   366   541  allow;
    settimeofday                   164    79   164  deny;
    setuid                         105    23   105  allow;
    setuid32                         -   213     -  allow;
    setxattr                       188   226   188  allow;
    setxattrat                     463   463   463  allow;
    sgetmask                         -    68     -  deny;
    shmat                           30   397    30  allow;
    shmctl                          31   396    31  allow;
    shmdt                           67   398    67  allow;
    shmget                          29   395    29  allow;
    shutdown                        48   373    48  allow;
    sigaction                        -    67     -  deny;
    sigaltstack                    131   186   525  allow;
    signal                           -    48     -  deny;
    signalfd                       282   321   282  allow;
    signalfd4                      289   327   289  allow;
    sigpending                       -    73     -  deny;
    sigprocmask                      -   126     -  allow;
    sigreturn                        -   119     -  allow;
    sigsuspend                       -    72     -  deny;
    socket                          41   359    41  family;
    socketcall                       -   102     -  multiplexed;
    socketpair                      53   360    53  family;
    splice                         275   313   275  allow;
    ssetmask                         -    69     -  deny;
    stat                             4   106     4  allow;
    stat64                           -   195     -  allow;
    statfs                         137    99   137  allow;
    statfs64                         -   268     -  allow;
    statmount                      457   457   457  allow;
    statx                          332   383   332  allow;
    stime                            -    25     -  deny;
    stty                             -    31     -  deny;
    swapoff                        168   115   168  deny;
    swapon                         167    87   167  deny;
    symlink                         88    83    88  allow;
    symlinkat                      266   304   266  allow;
    sync                           162    36   162  allow;
    sync_file_range                277   314   277  allow;
    syncfs                         306   344   306  allow;
    sysfs                          139   135   139  deny;
    sysinfo                         99   116    99  allow;
    syslog                         103   103   103  deny;
    tee                            276   315   276  allow;
    tgkill                         234   270   234  allow;
    time                           201    13   201  allow;
    timer_create                   222   259   526  allow;
    timer_delete                   226   263   226  allow;
    timer_getoverrun               225   262   225  allow;
    timer_gettime                  224   261   224  allow;
    timer_gettime64                  -   408     -  allow;
    timer_settime                  223   260   223  allow;
    timer_settime64                  -   409     -  allow;
    timerfd_create                 283   322   283  allow;
    timerfd_gettime                287   326   287  allow;
    timerfd_gettime64                -   410     -  allow;
    timerfd_settime                286   325   286  allow;
    timerfd_settime64                -   411     -  allow;
    times                          100    43   100  allow;
    tkill                          200   238   200  allow;
    truncate                        76    92    76  allow;
    truncate64                       -   193     -  allow;
    tuxcall                        184     -   184  deny;
    ugetrlimit                       -   191     -  allow;
    ulimit                           -    58     -  deny;
    umask                           95    60    95  allow;
    umount                           -    22     -  deny;
    umount2                        166    52   166  deny;
    uname                           63   122    63  allow;
    unlink                          87    10    87  allow;
    unlinkat                       263   301   263  allow;
    unshare                        272   310   272  deny;
    uretprobe                      335     -     -  allow;
    uselib                         134    86     -  deny;
    userfaultfd                    323   374   323  deny;
    ustat                          136    62   136  deny;
    utime                          132    30   132  allow;
    utimensat                      280   320   280  allow;
    utimensat_time64                 -   412     -  allow;
    utimes                         235   271   235  allow;
    vfork                           58   190    58  allow;
    vhangup                        153   111   153  deny;
    vm86                             -   166     -  deny;
    vm86old                          -   113     -  deny;
    vmsplice                       278   316   532  allow;
    vserver                        236   273     -  deny;
    wait4                           61   114    61  allow;
    waitid                         247   284   529  allow;
    waitpid                          -     7     -  allow;
    write                            1     4     1  allow;
    writev                          20   146   516  allow;
};
