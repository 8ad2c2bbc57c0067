<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">What is kept</%def>
<h1>What ${shown.named(policy.display_name, policy.id)} keeps, and why</h1>
<p>It keeps ${shown.kept(policy.settings['retention'])}. Computed to ${shown.moment(found.until)} as if each run succeeded; nothing is deleted by looking.</p>
<form method="get" action="${base}/policies/${policy.id}/preview" class="row">
<input name="volume" value="${volume}" maxlength="36" placeholder="Id of one volume" aria-label="Id of one volume">
<input name="days" value="${days}" maxlength="3" inputmode="numeric" aria-label="Days">
<button class="quiet">Look</button>
</form>
% if not found.volumes:
<p>It has no such volume.</p>
% endif
% for one in found.volumes[:most[0]]:
<section>
<h2><a href="${base}/volumes/${one.volume_id}" title="${one.volume_id}">${shown.named(names.get(one.volume_id), one.volume_id)}</a></h2>
% if not one.backups:
<p>It has no backup of this policy yet; ${shown.counted(one.kept, 'backup')} then.</p>
% else:
<div class="wide"><table>
<thead><tr><th scope="col">Backup of</th><th scope="col">Kept because</th><th scope="col">Goes</th></tr></thead>
<tbody>
% for fate in one.backups[:most[1]]:
<tr><th scope="row"><a href="${base}/volumes/${one.volume_id}#backup-${fate.backup_id}" title="${fate.backup_id}">${shown.moment(fate.taken_at)}</a></th>
<td>${fate.reason}
% for place in fate.places if len(fate.places) > 1 else ():
<small>${place.store}: ${place.reason}\
% if place.goes_at is not None:
, goes ${shown.since(place.goes_at, now)}\
% endif
</small>
% endfor
</td>
<td>${shown.state('stays') if fate.goes_at is None else shown.since(fate.goes_at, now)}</td></tr>
% endfor
</tbody></table></div>
<p><small>
% if len(one.backups) > most[1]:
The newest ${most[1]} of ${len(one.backups)}.
% endif
${shown.counted(one.kept, 'backup')} then, those of future runs among them.</small></p>
% endif
</section>
% endfor
% if found.total > most[0] and not volume:
<p><small>${most[0]} of ${found.total} volumes. Name another one to see its backups.</small></p>
% endif
<p><a href="${base}/policies/${policy.id}">Back to the policy</a></p>
${parts.same(f'POST /v3/{policy.project_id}/backup-policies/{policy.id}/action', '{"preview": {"days": ' + str(days) + '}}', f'backupfw policy preview --days {days} {policy.id}')}
