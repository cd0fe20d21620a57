/* systemd's side: one datagram per word (sd_notify(3)); without NOTIFY_SOCKET nothing happens. */
#ifndef CALIB_DAEMON_NOTIFY_H
#define CALIB_DAEMON_NOTIFY_H

void notify_send(const char *text); /* "READY=1", "STATUS=...", "WATCHDOG=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=..." */

#endif
