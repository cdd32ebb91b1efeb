// MS_* of mount(2), which linux/mount.h has, and what older headers lack.
#ifndef BERTH_WALK_H
#define BERTH_WALK_H
#include <signal.h>
#include <linux/close_range.h>
#endif
