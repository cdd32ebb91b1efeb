// The language of plans: what plan.go writes and walk.c walks. Numbers and
// strings of each step in this order.
#ifndef BERTH_STEPS_H
#define BERTH_STEPS_H

#define PLAN_MAGIC "berthpl1"
#define PLAN_LIMIT (4 << 20) // bytes

// PLAN_JOINS in the environment says that the plan begins with STEP_JOIN: the
// process is to put itself into a container that runs, without nsexec.
#define PLAN_JOINS "_BERTH_STEPS_JOIN"

enum {
	STEP_JOIN = 1,          // descriptors: of the parent's pipe, of the first process; CLONE_NEW*, number of open files of cgroups that follow; text for oom_score_adj or ""
	STEP_LIMIT,             // RLIMIT_*, soft, hard
	STEP_KEYRING,           // modify?, permissions to add; name
	STEP_LOOPBACK,
	STEP_ROOT,              // propagation; path
	STEP_FRESH,             // MOUNT_ATTR_*; type, source, path, options
	STEP_BIND,              // deep?, change?, MOUNT_ATTR_* to set, propagation, deep propagation?; source, path
	STEP_CGROUP,            // MOUNT_ATTR_*; mountpoint, controller, path
	STEP_DEVICE,            // mode with type, device, uid, gid; path
	STEP_LINK,              // replace?; to, path
	STEP_HOOKS,
	STEP_PIVOT,
	STEP_NULL,
	STEP_FOLDER,            // path
	STEP_TERMINAL,          // descriptor of the socket that it goes to, 0 where libcontainer names it; columns, rows, on /dev/console too?
	STEP_REMOUNT,           // MS_*; path
	STEP_UMASK,             // mask
	STEP_HOSTNAME,          // name
	STEP_DOMAIN,            // name
	STEP_APPARMOR,          // text to write
	STEP_SYSCTL,            // path below proc, value
	STEP_READONLY,          // path
	STEP_MASK,              // path
	STEP_NO_NEW_PRIVILEGES,
	STEP_READY,
	STEP_FILTER,
	STEP_PRIVILEGES,        // uid, gid, has capabilities?, bounding, effective, permitted, inheritable, ambient, number of groups, groups; cwd
	STEP_PARENT,
	STEP_PROC,
	STEP_ARGUMENTS,         // first process?; arguments
	STEP_ENVIRONMENT,       // PATH, then variables
	STEP_LOOK_UP,
	STEP_FINISH,
};
#endif
