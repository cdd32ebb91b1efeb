package doctor

import (
	"strings"

	"github.com/berth-project/berth/lib/host"
)

// examine judges the facts of a host.
func examine(h host.Facts, say Say) []Finding {
	available, missing := say("available", "disponible"), say("not available", "no disponible")
	var all []Finding
	// add takes what is said where something is there and where it is not.
	add := func(good bool, level, name, detail, lack, advice string) {
		if good {
			all = append(all, Finding{Name: name, Level: ok, Detail: detail})
			return
		}
		all = append(all, Finding{Name: name, Level: level, Detail: lack, Advice: advice})
	}
	add(h.Root, warning, "root", say("this is root", "es root"),
		say("this is not root: some of what follows may be seen wrongly", "no es root: parte de lo que sigue puede verse mal"), "sudo berth doctor")
	add(host.AtLeast(h.Kernel, 5, 10), problem, "kernel", h.Kernel,
		h.Kernel+say(" is older than 5.10", " es anterior a 5.10"), say("upgrade the kernel", "actualice el núcleo"))
	add(h.Overlay, problem, "overlayfs", available, missing, "modprobe overlay")
	add(h.NFTables, problem, "nf_tables", available, missing+say(": no port can be published", ": no se puede publicar ningún puerto"), "modprobe nf_tables")
	add(h.Bridge && h.Veth, problem, "bridge and veth", available,
		missing+say(": only host and none networks work", ": solo funcionan las redes host y none"), "modprobe bridge; modprobe veth")
	all = append(all, cgroups(h, say)...)
	add(h.Seccomp, warning, "seccomp", available, missing+say(": system calls are not filtered", ": no se filtran las llamadas al sistema"),
		say("use a kernel with CONFIG_SECCOMP_FILTER", "use un núcleo con CONFIG_SECCOMP_FILTER"))
	all = append(all, confinement(h, say))
	add(h.UserNS, warning, "user namespaces", available, missing, "sysctl user.max_user_namespaces=15000")
	add(h.IPv6, warning, "IPv6", available, missing+say(": networks are IPv4 only", ": las redes son solo IPv4"), "")
	add(h.SysResource, warning, "CAP_SYS_RESOURCE", say("held", "se tiene"), say("missing: hard limits cannot be raised", "falta: los límites duros no se pueden subir"),
		say("run the daemon with all capabilities", "ejecute el demonio con todas las capacidades"))
	add(h.PidfdExitInfo, warning, "exit codes after a keeper's death", available,
		say("kernel < 6.15: an exit code may be lost (137 is reported) if the keeper is killed", "núcleo < 6.15: si matan al keeper puede perderse un código de salida (se da 137)"), "")
	return all
}

// cgroups tells of limits, and what to do by the version of cgroups.
func cgroups(h host.Facts, say Say) []Finding {
	if h.CgroupMode == host.CgroupNone {
		return []Finding{{Name: "cgroups", Level: problem, Detail: say("none are mounted", "no hay ninguno montado"), Advice: "mount -t cgroup2 none /sys/fs/cgroup"}}
	}
	detail := map[string]string{
		host.CgroupV1:     say("version 1", "versión 1"),
		host.CgroupV2:     say("version 2", "versión 2"),
		host.CgroupHybrid: say("hybrid: limits are those of version 1", "híbrido: los límites son los de la versión 1"),
	}[h.CgroupMode]
	if h.Systemd && h.CgroupMode == host.CgroupV2 {
		detail += say(", managed by systemd", ", gestionados por systemd")
	}
	all := []Finding{{Name: "cgroups", Level: ok, Detail: detail}}
	add := func(good bool, name, lack, advice string) {
		f := Finding{Name: name, Level: ok, Detail: say("available", "disponible")}
		if !good {
			f.Level, f.Detail, f.Advice = warning, say("not available", "no disponible")+lack, advice
		}
		all = append(all, f)
	}
	for _, c := range []string{"memory", "cpu", "cpuset", "pids"} {
		advice := say("add cgroup_enable=", "añada cgroup_enable=") + c + say(" to the kernel's command line", " a la línea de órdenes del núcleo")
		if h.CgroupMode == host.CgroupHybrid {
			advice = "mount -t cgroup -o " + c + " cgroup /sys/fs/cgroup/" + c
		}
		add(h.Controllers[c], "cgroup "+c, say(": such limits have no effect or are refused", ": tales límites no tienen efecto o se rechazan"), advice)
	}
	add(h.Controllers["io"] || h.Controllers["blkio"], "cgroup block io", say(": such limits are refused", ": tales límites se rechazan"), "")
	advice := say("add swapaccount=1 to the kernel's command line", "añada swapaccount=1 a la línea de órdenes del núcleo")
	if h.CgroupMode == host.CgroupV2 {
		advice = say("use a kernel with CONFIG_SWAP and without swapaccount=0", "use un núcleo con CONFIG_SWAP y sin swapaccount=0")
	}
	add(h.SwapLimit, "swap limit", say(": --memory-swap is ignored", ": --memory-swap se ignora"), advice)
	return all
}

// confinement tells which security module holds containers.
func confinement(h host.Facts, say Say) Finding {
	f := Finding{Name: "mandatory access control", Level: ok}
	var have []string
	switch {
	case h.AppArmor && !h.AppArmorParser:
		f.Level = warning
		have = append(have, say("AppArmor is on, but apparmor_parser is not installed: containers are not confined by it", "AppArmor está activo, pero falta apparmor_parser: no confina los contenedores"))
		f.Advice = "apt-get install apparmor"
	case h.AppArmor:
		have = append(have, "AppArmor")
	}
	if h.SELinux {
		have = append(have, say("SELinux (containers are labelled with berthd --selinux-enabled)", "SELinux (los contenedores se etiquetan con berthd --selinux-enabled)"))
	}
	if len(have) == 0 {
		f.Level = warning
		have = append(have, say("neither AppArmor nor SELinux is active", "ni AppArmor ni SELinux están activos"))
		f.Advice = say("with a kernel that has it, on Debian: apt-get install apparmor, then reboot with apparmor=1 security=apparmor", "con un núcleo que lo tenga, en Debian: apt-get install apparmor y reinicie con apparmor=1 security=apparmor")
	}
	f.Detail = strings.Join(have, ", ")
	return f
}
