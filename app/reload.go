package app

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/core/event"
)

// reloadable settings change at SIGHUP, as with dockerd; others need a restart.
var reloadable = []string{"debug", "log-level", "labels", "insecure-registries", "registry-mirrors", "max-concurrent-downloads"}

// reload reads flags and file again. A file that is not valid changes nothing.
func (d *daemon) reload(args []string) {
	c, _, err := parse(args)
	if err == nil {
		err = d.images.SetRegistries(c.registries())
	}
	if err != nil {
		d.log.Error("configuration not reloaded", "error", err)
		return
	}
	level, err := c.level()
	if err != nil {
		d.log.Error("configuration not reloaded", "error", err)
		return
	}
	if d.level != nil {
		d.level.Set(level)
	}
	d.report.reload(c)
	left := changed(d.given, c)
	d.log.Info("configuration reloaded", "needs_restart", strings.Join(left, " "))
	d.events.Publish(event.Event{Type: "daemon", Action: "reload", ID: d.report.static.ID, Time: time.Now(), Attributes: map[string]string{
		"name": d.report.static.Name, "debug": strconv.FormatBool(c.Debug), "labels": list(c.Labels), "insecure-registries": list(c.Insecure),
		"registry-mirrors": list(c.Mirrors), "max-concurrent-downloads": strconv.Itoa(c.Downloads),
	}})
}

func list(values []string) string {
	if values == nil {
		values = []string{}
	}
	b, _ := json.Marshal(values) // strings always encode
	return string(b)
}

// changed names the settings that differ and that reload does not take over.
func changed(a, b Config) (names []string) {
	from, to := reflect.ValueOf(a), reflect.ValueOf(b)
	for _, f := range reflect.VisibleFields(from.Type()) {
		name := f.Tag.Get("json")
		if name != "" && name != "-" && !slices.Contains(reloadable, name) && !reflect.DeepEqual(from.FieldByIndex(f.Index).Interface(), to.FieldByIndex(f.Index).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

// level is from where on the daemon logs.
func (c Config) level() (level slog.Level, err error) {
	if c.Debug {
		return slog.LevelDebug, nil
	}
	return level, level.UnmarshalText([]byte(c.LogLevel))
}
