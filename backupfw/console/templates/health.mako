<%inherit file="base.mako"/>
<%def name="title()">Health</%def>
<h1>Health</h1>
<p>Volumes without a good backup of the last
% for one in ages:
<a href="${base}/health?days=${one}"${' aria-current="true"' if one == days else '' | n}>${shown.DAYS[one]}</a>${'' if loop.last else ','}
% endfor
</p>
${changing()}

<%def name="changing()">
<section id="changing" hx-get="${base}/health?days=${days}" hx-trigger="every 60s" hx-swap="outerMorph">
% if good:
<p class="verdict good">Everything is backed up.
<small>${shown.counted(health.volumes - health.new, 'volume')} with a good backup of the last ${shown.DAYS[days]}\
% if health.new:
, ${health.new} younger than that and without one yet\
% endif
. Nothing failed, nothing is damaged.</small></p>
% else:
<p class="verdict bad">
% if health.stale_count:
${shown.counted(health.stale_count, 'volume')} of ${health.volumes} without a good backup of the last ${shown.DAYS[days]}.
% else:
Each volume has a good backup of the last ${shown.DAYS[days]}, but something needs a look.
% endif
</p>
% endif
% if health.stale:
<h2>Not backed up</h2>
<div class="wide"><table>
<thead><tr><th scope="col">Volume</th><th scope="col">Last good backup</th><th scope="col">Last verified backup</th></tr></thead>
<tbody>
% for one in health.stale:
<tr><th scope="row"><a href="${base}/volumes/${one.id}" title="${one.id}">${shown.named(one.name, one.id)}</a><small>project ${one.project_id}</small></th>
<td>
% if one.last_good is None:
<span class="state bad">none</span>
% else:
${shown.since(one.last_good, health.moment)}
% endif
</td><td>${shown.since(one.last_verified, health.moment)}</td></tr>
% endfor
</tbody></table></div>
% if health.stale_count > len(health.stale):
<p><small>The oldest ${len(health.stale)} of ${health.stale_count}.</small></p>
% endif
% endif
${troubles('Failed within a day', health.failed)}
${troubles('Damaged', health.damaged)}
${troubles('Not copied', health.not_copied)}
${troubles('Not deleted', health.undeleted)}
${troubles('Failed their restore test', health.untested)}
% if runs:
<h2>Runs of backup policies that were missed or failed within a day</h2>
<div class="wide"><table>
<thead><tr><th scope="col">Volume</th><th scope="col">Run</th><th scope="col">At</th></tr></thead>
<tbody>
% for one in runs:
<tr><th scope="row">
% if one.volume_id is None:
search of new volumes\
% else:
<a href="${base}/volumes/${one.volume_id}" title="${one.volume_id}">${shown.named(None, one.volume_id)}</a>\
% endif
<small>project ${one.project_id}, policy ${one.policy_id}</small></th>
<td>${shown.state(one.status)}<small>${one.reason or ''}</small></td><td>${shown.since(one.scheduled_at, health.moment)}</td></tr>
% endfor
</tbody></table></div>
% endif
% if health.quotas:
<h2>Quotas near their end</h2>
<ul>
% for name, used, limit in health.quotas:
<li>${name.replace('_', ' ')}: ${used} of ${limit}</li>
% endfor
</ul>
% endif
% if health.services is not None:
<h2>Workers</h2>
% if not health.services:
<p><span class="state bad">none</span> No worker has ever reported itself.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">Host</th><th scope="col">State</th><th scope="col">Zone</th><th scope="col">Reported</th></tr></thead>
<tbody>
% for one in health.services:
<tr><th scope="row">${one.host}</th><td>${shown.state(one.state)}${shown.state('disabled') if one.disabled else ''}${shown.state('frozen') if one.frozen else ''}</td><td>${one.availability_zone or '-'}</td><td>${shown.since(one.reported_at, health.moment)}</td></tr>
% endfor
</tbody></table></div>
% endif
<h2>Stores</h2>
<div class="wide"><table>
<thead><tr><th scope="col">Store</th><th scope="col">State</th></tr></thead>
<tbody>
% for one in health.stores:
<tr><th scope="row">${one.name}</th><td>
% if one.down:
<span class="state bad">does not answer</span><small>${shown.counted(one.down, 'task')} wait for it</small>
% elif one.workers:
<span class="state good">reached</span><small>by ${shown.counted(one.workers, 'host')}</small>
% else:
<span class="state bad">reached by no worker</span>
% endif
% if one.overdue_since is not None:
<span class="state bad">not verified in time</span><small>the oldest proof is of ${shown.since(one.overdue_since, health.moment)}</small>
% endif
</td></tr>
% endfor
</tbody></table></div>
% endif
</section>
</%def>

<%def name="troubles(title, backups)">
% if backups:
<h2>${title}</h2>
<div class="wide"><table>
<thead><tr><th scope="col">Backup</th><th scope="col">State</th><th scope="col">Of</th></tr></thead>
<tbody>
% for one in backups:
<tr><th scope="row"><a href="${base}/volumes/${one.volume_id}#backup-${one.id}" title="${one.id}">${shown.named(one.name, one.id)}</a><small>project ${one.project_id}</small></th>
<td>${shown.state('damaged' if one.damaged else one.status)}
% if one.fail_reason:
<small>${one.fail_reason}</small>
% endif
% for store, status in one.copies:
<small>copy in ${store}: ${shown.state(status)}</small>
% endfor
</td><td>${shown.since(one.moment, health.moment)}</td></tr>
% endfor
</tbody></table></div>
% endif
</%def>
